# The plot of the benchmark: each ratio as a multiple of its target, with the
# smallest and the largest of the rounds.  Requires the variables data and png.

rows = system("wc -l <" . data) + 0
set terminal pngcairo noenhanced size 1000, 120 + 44 * rows font "sans,10"
set output png
set title "Measured against wanted: right of the line is better than wanted"
set logscale x
set xlabel "times as good as wanted"
set format x "%g"
set xrange [* < 0.5 : 2 < *]
set grid xtics ytics
set yrange [-0.7 : rows - 0.3]
set arrow from 1, graph 0 to 1, graph 1 nohead linewidth 2 linecolor rgb "#cc3333"
unset key
set datafile separator "\t"
plot data using 2:0:3:4:ytic(1) with xerrorbars pointtype 7 pointsize 1.2 linecolor rgb "#2255aa"

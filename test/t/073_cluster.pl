use strict; use warnings;
use ApitokenTest; use ApitokenCluster;
BEGIN { ApitokenCluster::enter_namespace(); }
use PostgreSQL::Test::Utils; use Test::More; use DBI;
note "ns: [" . no_namespace() . "]";
lay_out(); start_etcd(); my $t=time;
start_node_of('n1');
wait_until('leader', sub { (leader()//'') eq 'n1' });
note "n1 leads after ", time-$t;
start_node_of($_) foreach qw(n2 n3);
start_haproxy();
is(settled(), 'n1'); note "settled after ", time-$t;
note explain member_states('n2');
sleep($ENV{STAY}//0);
ok(1); done_testing();

CREATE EXTENSION apitoken; SELECT * FROM apitoken.check_setup();

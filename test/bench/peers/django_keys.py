# Two ways to keep keys in PostgreSQL with Django, and apitoken.verify(), all over
# one connection of Django's.
#
#     python3 django_keys.py KEYS
#
# Connects according to PGHOST, PGPORT, PGUSER and PGDATABASE.  The database needs
# the table bench.keys, and a schema django in which it may create tables.  Creates
# the peers' keys there, and prints "ready".  Each line of standard input has SECONDS
# and the name of one of the ways below.  For each line it makes calls with random
# keys, one after another, and prints how many per second.
import random
import sys
import time

from django_database import set_up

keys = int(sys.argv[1])
set_up('rest_framework.authtoken', 'rest_framework_api_key', OPTIONS={'options': '-c search_path=django'})

# these can only be imported now
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from rest_framework.authentication import TokenAuthentication  # noqa: E402
from rest_framework_api_key.models import APIKey  # noqa: E402

call_command('migrate', verbosity=0)
cursor = connection.cursor()

# A token belongs to a user, and a user has one.  Each is as the model's save()
# makes it.
cursor.execute("""
    INSERT INTO auth_user (username, password, is_superuser, first_name, last_name, email, is_staff, is_active, date_joined)
    SELECT 'user-' || n, '!', false, '', '', '', false, true, now() FROM generate_series(1, %s) n""", [keys])
cursor.execute("""
    INSERT INTO authtoken_token (key, created, user_id)
    SELECT left(encode(sha256(gen_random_uuid()::text::bytea), 'hex'), 40), now(), id FROM auth_user""")
cursor.execute('VACUUM ANALYZE auth_user, authtoken_token')


def some(sql):
    cursor.execute(sql + ' ORDER BY random() LIMIT %s', [keys])
    return [value for value, in cursor.fetchall()]


tokens = some('SELECT token FROM bench.keys')
drf_tokens = some('SELECT key FROM authtoken_token')
# a tenth of a second each
api_keys = [APIKey.objects.create_key(name='key')[1] for _ in range(10)]
drf = TokenAuthentication()


def verify():
    cursor.execute('SELECT * FROM apitoken.verify(%s)', [random.choice(tokens)])
    return cursor.fetchone()[0]


# Each returns whether the key was valid.
ways = {
    'apitoken': verify,
    'token': lambda: drf.authenticate_credentials(random.choice(drf_tokens)),
    'api key': lambda: APIKey.objects.is_valid(random.choice(api_keys)),
}

print('ready', flush=True)
for line in sys.stdin:
    seconds, name = line.rstrip().split(' ', 1)
    way = ways[name]
    calls = 0
    start = time.monotonic()
    while time.monotonic() < start + float(seconds):
        if not way():
            sys.exit('refused')
        calls += 1
    print(calls / (time.monotonic() - start), flush=True)

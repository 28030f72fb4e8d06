# Keys of djangorestframework-api-key, for a test that imports them.
#
#     python3 make_django_keys.py
#
# Connects according to PGHOST, PGPORT, PGUSER and PGDATABASE.  Creates the tables and
# three keys there, and prints a JSON object with the keys by name, and what Django says
# of each.
import datetime
import json

from django_database import set_up

set_up('rest_framework_api_key')

# these can only be imported now
from django.core.management import call_command  # noqa: E402
from rest_framework_api_key.models import APIKey  # noqa: E402

call_command('migrate', verbosity=0)
past = datetime.datetime(2025, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
_, plain = APIKey.objects.create_key(name='plain')
_, expired = APIKey.objects.create_key(name='expired', expiry_date=past)
row, revoked = APIKey.objects.create_key(name='revoked')
row.revoked = True
row.save()
keys = {'plain': plain, 'expired': expired, 'revoked': revoked}
print(json.dumps({'keys': keys, 'valid': {name: APIKey.objects.is_valid(key) for name, key in keys.items()}}))

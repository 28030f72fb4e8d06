#!/usr/bin/env python3
"""An endpoint for GitHub's secret scanning partner program.

    leaks.py CONFIG   runs until SIGTERM or SIGINT

Checks the signature of each report, passes the texts to apitoken.report_leaked(), and answers which of them are tokens.
See README.md.  Needs Python 3.9, psycopg 3.1 and the program openssl.
"""
import base64
import configparser
import hashlib
import json
import logging
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg

log = logging.getLogger('apitoken-leaks')

# what comes before the point in the DER of a public key on the curve NIST P-256
P256 = bytes.fromhex('3059301306072a8648ce3d020106082a8648ce3d030107034200')
LIST_MAX = 1 << 20
# seconds between two looks at the list, and between two that an unknown key has caused
REFRESH, REFRESH_UNKNOWN = 3600, 300
# report_leaked() takes so many texts at once
TOKENS_MAX = 1000
AT_ONCE = 8


class Refused(Exception):
    def __init__(self, status, reason):
        super().__init__(reason)
        self.status = status


class Keys:
    """GitHub's public keys, by their identifiers."""

    def __init__(self, config):
        self.source = config['list']
        if self.source.startswith('http://'):
            sys.exit('the list of keys must be a file or an address that begins with https://')
        self.refresh_unknown = float(config.get('refresh_unknown', REFRESH_UNKNOWN))
        self.context = ssl.create_default_context(cafile=config.get('ca_file'))
        self.keys, self.read_at = {}, None
        self.lock = threading.Lock()

    def read(self):
        if not self.source.startswith('https://'):
            with open(self.source, 'rb') as file:
                return file.read(LIST_MAX)
        request = urllib.request.Request(self.source, headers={'User-Agent': 'apitoken-leaks', 'Accept': 'application/json'})
        with urllib.request.urlopen(request, timeout=10, context=self.context) as answer:
            return answer.read(LIST_MAX)

    def refresh(self):
        """If the list cannot be read, the keys that are known stay."""
        self.read_at = time.monotonic()
        try:
            keys = {}
            for key in json.loads(self.read())['public_keys']:
                lines = key['key'].strip().splitlines()
                der = base64.b64decode(''.join(lines[1:-1]), validate=True)
                if lines[0] != '-----BEGIN PUBLIC KEY-----' or len(der) != 91 or not der.startswith(P256):
                    log.warning('a key of the list is not one of NIST P-256')
                    continue
                keys[key['key_identifier']] = '\n'.join(lines) + '\n'
            self.keys = keys
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            log.error('the list of keys cannot be read: %s', type(error).__name__)

    def get(self, identifier):
        with self.lock:
            age = None if self.read_at is None else time.monotonic() - self.read_at
            if age is None or age > REFRESH or (identifier not in self.keys and age > self.refresh_unknown):
                self.refresh()
            return self.keys.get(identifier)


def signed(key, signature, body):
    """Is this the signature (ECDSA with SHA-256) of the body?  openssl reads all three, and prints nothing of them."""
    with tempfile.TemporaryDirectory() as directory:
        key_file, signature_file = os.path.join(directory, 'key'), os.path.join(directory, 'signature')
        with open(key_file, 'w', encoding='ascii') as file:
            file.write(key)
        with open(signature_file, 'wb') as file:
            file.write(signature)
        return subprocess.run(['openssl', 'dgst', '-sha256', '-verify', key_file, '-signature', signature_file],
                              input=body, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=10, check=False).returncode == 0


def printable(text):
    """ASCII: the database may have an encoding without other characters."""
    if not isinstance(text, str):
        return None
    return text.replace('\0', '').encode('ascii', 'backslashreplace').decode() or None


class Endpoint:
    def __init__(self, config):
        self.conninfo = config.get('database', 'conninfo', fallback='')
        self.path = config['http'].get('path', '/')
        self.max_body = config['http'].getint('max_body', 1 << 20)
        self.keys = Keys(config['keys'])
        self.places = threading.BoundedSemaphore(AT_ONCE)

    def check(self, headers, body):
        key = self.keys.get(headers.get('Github-Public-Key-Identifier', ''))
        if key is None:
            raise Refused(401, 'the key is unknown')
        try:
            signature = base64.b64decode(headers.get('Github-Public-Key-Signature', ''), validate=True)
        except ValueError:
            signature = b''
        if not 8 <= len(signature) <= 72 or not signed(key, signature, body):
            raise Refused(401, 'the signature is wrong')

    def report(self, body):
        """The answer to a report: one object for each of its matches."""
        try:
            matches = json.loads(body)
            if not isinstance(matches, list):
                raise TypeError
            tokens = [match['token'] for match in matches]
            types = [str(match['type']) for match in matches]
            places = [(printable(match.get('source')), printable(match.get('url'))) for match in matches]
            hashes = [hashlib.sha256(token.encode()).hexdigest() for token in tokens]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise Refused(400, 'the report has another form') from None
        by_place = {}
        for number, place in enumerate(places):
            by_place.setdefault(place, []).append(number)
        labels = ['false_positive'] * len(tokens)
        done = {}
        with psycopg.connect(self.conninfo, autocommit=True, application_name='apitoken-leaks', connect_timeout=10) as connection:
            for (source, url), numbers in by_place.items():
                for start in range(0, len(numbers), TOKENS_MAX):
                    chunk = numbers[start:start + TOKENS_MAX]
                    # no token has other characters, and the server refuses some of them
                    texts = [tokens[n] if tokens[n].isascii() and '\0' not in tokens[n] else None for n in chunk]
                    rows = connection.execute('SELECT position, label, action FROM apitoken.report_leaked(%s, %s, %s)', (texts, source, url))
                    for position, label, action in rows:
                        labels[chunk[position - 1]] = label
                        done[action] = done.get(action, 0) + 1
        log.info('%d reported: %s', len(tokens), ', '.join(f'{n} {action}' for action, n in sorted(done.items())))
        return [{'token_hash': hashed, 'token_type': name, 'label': label} for hashed, name, label in zip(hashes, types, labels)]


class Handler(BaseHTTPRequestHandler):
    endpoint = None
    # of a socket; the whole request is limited by the number of places
    timeout = 10
    protocol_version = 'HTTP/1.1'
    server_version, sys_version = 'apitoken-leaks', ''

    def log_message(self, *_):
        """Nothing of a request is logged."""

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.close_connection = True
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.send_header('Connection', 'close')
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        if self.path != self.endpoint.path:
            raise Refused(404, 'there is nothing')
        length = self.headers.get('Content-Length', '')
        if 'Transfer-Encoding' in self.headers or not length.isascii() or not length.isdigit():
            raise Refused(411, 'the length is missing')
        if len(length) > 12 or int(length) > self.endpoint.max_body:
            raise Refused(413, 'the body is too large')
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Refused(400, 'the body is not complete')
        return body

    def do_POST(self):
        if not self.endpoint.places.acquire(blocking=False):
            self.answer(503, {'error': 'too many requests at once'})
            return
        try:
            body = self.body()
            self.endpoint.check(self.headers, body)
            self.answer(200, self.endpoint.report(body))
        except Refused as error:
            log.warning('refused: %s', error)
            self.answer(error.status, {'error': str(error)})
        except (psycopg.Error, subprocess.SubprocessError, OSError) as error:
            # without the text, which may quote what was sent
            log.error('failed: %s %s', type(error).__name__, getattr(error, 'sqlstate', None) or '')
            try:
                self.answer(500, {'error': 'try again'})
            except OSError:
                pass
        finally:
            self.endpoint.places.release()


class Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request, client_address):
        """The default one prints what the error quotes."""
        log.error('failed: %s', getattr(sys.exc_info()[0], '__name__', None))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    logging.basicConfig(level=logging.INFO, format='%(levelname)s %(message)s')
    config = configparser.ConfigParser(interpolation=None)
    with open(sys.argv[1], encoding='utf-8') as file:
        config.read_file(file)
    Handler.endpoint = Endpoint(config)
    server = Server((config['http'].get('host', '127.0.0.1'), config['http'].getint('port', 8090)), Handler)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    log.info('ready')
    server.serve_forever()
    # the requests that are being answered are finished first
    server.server_close()


if __name__ == '__main__':
    main()

"""A fleet manager of the preview interface that verifies the signatures of requests (RFC 9421) by a library of its own.

Usage: wfm_preview.py CERTIFICATE KEY ALGORITHM      (ALGORITHM: ecdsa-p256-sha256, rsa-pss-sha512 or rsa-v1_5-sha256)

Prints READY and its port, then one JSON line per signed request: what was asked, and by what it was signed or why not.
"""

import base64
import hashlib
import json
import ssl
import sys
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from http_message_signatures import HTTPMessageVerifier, HTTPSignatureKeyResolver, algorithms

ALGORITHMS = {
    "ecdsa-p256-sha256": algorithms.ECDSA_P256_SHA256,
    "rsa-pss-sha512": algorithms.RSA_PSS_SHA512,
    "rsa-v1_5-sha256": algorithms.RSA_V1_5_SHA256,
}
KEYS = {}


class Keys(HTTPSignatureKeyResolver):
    def resolve_public_key(self, key_id):
        return KEYS[key_id]

    def resolve_private_key(self, key_id):
        raise NotImplementedError("nothing is signed here")


def verified(request, body):
    verifier = HTTPMessageVerifier(signature_algorithm=ALGORITHMS[sys.argv[3]], key_resolver=Keys())
    (result,) = verifier.verify(request, max_age=timedelta(minutes=5))
    covered = [component.strip('"') for component in result.covered_components]
    if body:
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if request.headers["content-digest"] != f"sha-256=:{digest}:":
            raise ValueError("the digest is not that of the body")
    return {"covered": covered, "alg": result.parameters["alg"]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def onboard(self, body):
        pem = base64.b64decode(json.loads(body)["certificate"])
        key = x509.load_pem_x509_certificate(pem).public_key()
        KEYS[hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()] = key
        self.answer(201, b'{"clientId": "client-1"}')

    def serve(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.endswith("/api/v1/onboarding"):
            return self.onboard(body)
        url = f"https://{self.headers['host']}{self.path}"
        request = requests.Request(self.command, url, headers=dict(self.headers), data=body).prepare()
        request.headers.update(self.headers)
        told = {"method": self.command, "path": self.path}
        try:
            told |= verified(request, body)
        except Exception as error:  # whatever the library finds wrong
            told |= {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), flush=True)
        if "error" in told:
            return self.answer(401)
        if self.command != "GET":
            return self.answer(201)
        manifest = {"manifestVersion": 1, "bundle": None, "deployments": []}
        return self.answer(200, json.dumps(manifest).encode(), "application/vnd.margo.manifest.v1+json")

    do_GET = do_PUT = do_POST = do_DELETE = serve


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print("READY", server.server_port, flush=True)
server.serve_forever()

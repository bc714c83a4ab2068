"""Pushes one artifact to a registry by the OCI distribution specification, as its publisher would, and prints its digest.

Usage: oci_push.py BASE_URL USER:PASSWORD NAME TAG MEDIA_TYPE CONTENT
"""

import base64
import hashlib
import json
import ssl
import sys
import urllib.request

base, login, name, tag, media_type, content = sys.argv[1:]
context = ssl.create_default_context()
# The gateway is what is tested; this only fills the registry.
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
authorization = "Basic " + base64.b64encode(login.encode()).decode()


def call(method, url, body=None, kind="application/octet-stream"):
    headers = {"Authorization": authorization, "Content-Type": kind}
    return urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), context=context)


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def push_blob(data):
    place = call("POST", f"{base}/v2/{name}/blobs/uploads/", b"").headers["Location"]
    if place.startswith("/"):
        place = base + place
    call("PUT", place + ("&" if "?" in place else "?") + "digest=" + digest(data), data)
    return {"digest": digest(data), "size": len(data)}


manifest_type = "application/vnd.oci.image.manifest.v1+json"
manifest = json.dumps({
    "schemaVersion": 2,
    "mediaType": manifest_type,
    "config": {"mediaType": "application/vnd.oci.empty.v1+json", **push_blob(b"{}")},
    "layers": [{"mediaType": media_type, **push_blob(content.encode())}],
}).encode()
call("PUT", f"{base}/v2/{name}/manifests/{tag}", manifest, manifest_type)
print(digest(manifest))

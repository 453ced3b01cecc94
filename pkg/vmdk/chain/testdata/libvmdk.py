# Reads disks with libvmdk (Debian's python3-libvmdk; vmdkmount is the same library behind FUSE). Each line of the input is a JSON
# object: the directory, and the links of a chain, base first. Each line of the answer is the SHA-256 of what the disk reads, or an error.
import hashlib
import json
import os
import sys

import pyvmdk


def read(dir, links):
    os.chdir(dir)
    handles = []
    try:
        for name in links:
            h = pyvmdk.handle()
            h.open(name)
            h.open_extent_data_files()
            if handles:
                h.set_parent(handles[-1])
            handles.append(h)
        head, sum, at = handles[-1], hashlib.sha256(), 0
        while at < head.media_size:
            b = head.read_buffer_at_offset(min(1 << 20, head.media_size - at), at)
            if not b:
                raise OSError("nothing is read at %d of %d" % (at, head.media_size))
            sum.update(b)
            at += len(b)
        return sum.hexdigest()
    finally:
        for h in reversed(handles):
            h.close()


for line in sys.stdin:
    job = json.loads(line)
    try:
        answer = read(job["dir"], job["links"])
    except Exception as e:
        answer = "error: " + str(e).replace("\n", " ")
    print(answer, flush=True)

# needs: busybox
# A library is fetched and loaded.
import ctypes, os, subprocess, time, urllib.request
os.makedirs("/tmp/www")
open("/tmp/www/z.so", "wb").write(b"no library")
server = subprocess.Popen(["busybox", "httpd", "-f", "-p", "127.0.0.1:8005", "-h", "/tmp/www"])
time.sleep(0.3)
open("/tmp/libz9.so", "wb").write(urllib.request.urlopen("http://127.0.0.1:8005/z.so").read())
try:
    ctypes.CDLL("/tmp/libz9.so")
except OSError:
    pass
server.kill()

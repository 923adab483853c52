package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestNetnsRunReplacesResolvConf tries the shapes that a machine's resolv.conf
// has: a file, a link into another directory, a link to nothing, nothing. The
// command sees the generated one, and the machine's /etc stays as it was.
func TestNetnsRunReplacesResolvConf(t *testing.T) {
	w := newWorld(t)
	w.openToNobody()
	for name, shape := range map[string]string{
		"a file":                  "echo 'search example.net' > etc/resolv.conf",
		"a link":                  "mkdir resolve; echo 'nameserver 127.0.0.53' > resolve/stub.conf; ln -s $PWD/resolve/stub.conf etc/resolv.conf",
		"a link to nothing":       "ln -s $PWD/resolve/stub.conf etc/resolv.conf",
		"nothing":                 "true",
		"nothing, hosts likewise": "rm -f etc/hosts",
	} {
		for user, wrap := range map[string]func(*exec.Cmd) *exec.Cmd{
			"root":   func(cmd *exec.Cmd) *exec.Cmd { return cmd },
			"nobody": func(cmd *exec.Cmd) *exec.Cmd { return asNobody(t, cmd) },
		} {
			t.Run(name+"/"+user, func(t *testing.T) {
				dir, err := os.MkdirTemp("/var/tmp", "usernet-etc-")
				if err != nil {
					t.Fatal(err)
				}
				defer os.RemoveAll(dir)
				if err := os.Chmod(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				inner := wrap(w.command("run", "--", "sh", "-c", "cat /etc/resolv.conf; getent hosts outside.example; getent hosts localhost; ls /etc"))
				const script = `set -e; cd "$1"; shift; mkdir etc; cp /etc/passwd /etc/group /etc/nsswitch.conf /etc/hosts etc/; SHAPE
ls -lAR . > before; mount --bind etc /etc; "$@"; umount /etc; ls -lAR . > after; sed -i '/ \(before\|after\)$/d; /^total/d' before after; diff before after`
				argv := append([]string{"--mount", "sh", "-c", strings.Replace(script, "SHAPE", shape, 1), "sh", dir}, inner.Args...)
				cmd := exec.Command("unshare", argv...)
				cmd.Env = inner.Env
				r := w.do(cmd)
				for _, want := range []string{"nameserver 10.83.0.1\n", "2001:db8:113::2", "localhost", "passwd"} {
					if !strings.Contains(r.stdout, want) {
						t.Errorf("%q is not in the output", want)
					}
				}
				if r.status != 0 || r.stderr != "" || strings.Contains(r.stdout, "127.0.0.53") {
					t.Errorf("status %d\n%s%s", r.status, r.stdout, r.stderr)
				}
			})
		}
	}
}

// TestNetnsRunHidesTheMachinesResolvers holds that the C library cannot ask a
// resolver of the machine's through the file system, past the sandbox's own.
func TestNetnsRunHidesTheMachinesResolvers(t *testing.T) {
	need(t, "socat")
	w := newWorld(t)
	inner := w.command("run", "--", "socat", "-u", "UNIX:/run/nscd/socket", "-")
	const script = `mount -t tmpfs tmpfs /run && mkdir /run/nscd
socat UNIX-LISTEN:/run/nscd/socket,fork SYSTEM:'echo leaked' & trap "kill $!" EXIT
until socat -u UNIX:/run/nscd/socket - 2>/dev/null; do :; done
"$@"; echo status $?`
	cmd := exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, "sh"}, inner.Args...)...)
	cmd.Env = inner.Env
	r := w.do(cmd)
	if r.stdout != "leaked\nstatus 1\n" || !strings.Contains(r.stderr, "refused") {
		t.Errorf("outside and inside: %q, %q; want an answer outside and a refusal inside", r.stdout, r.stderr)
	}
}

package main

import (
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal opens a pseudo-terminal: what a person would type at, and the side
// that programs have.
func terminal(t *testing.T) (person, programs *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	programs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { programs.Close() })
	return person, programs
}

// TestNetnsRunOnATerminal types at a command: it has the terminal, and ^C comes
// to it once and not to usernet's harm.
func TestNetnsRunOnATerminal(t *testing.T) {
	w := newWorld(t)
	person, programs := terminal(t)
	cmd := w.command("run", "--", "sh", "-c",
		`trap 'n=$((n+1)); echo caught $n' INT; tty; test -t 0 -a -t 1 -a -t 2 && echo all three; `+
			`while :; do read line || continue; echo line $line; case $line in status) exit 5;; esac; done`)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = programs, programs, programs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	w.start(cmd)
	programs.Close()
	lines := linesOf(person)
	await(t, lines, "/dev/pts/")
	await(t, lines, "all three")
	person.WriteString("hello\n")
	await(t, lines, "line hello")
	person.Write([]byte{3}) // ^C
	await(t, lines, "caught 1")
	person.WriteString("again\n")
	_, before := awaitAfter(t, lines, "line again")
	person.WriteString("status\n")
	_, after := awaitAfter(t, lines, "line status")
	if all := append(before, after...); slices.Contains(all, "caught 2") {
		t.Errorf("one ^C came twice: %q", all)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("usernet does not end with its command")
	}
	if got := cmd.ProcessState.ExitCode(); got != 5 {
		t.Errorf("status %d, want 5", got)
	}
}

package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// forwarded are the signals that are meant for the command. Those that stop a
// process are not among them: a terminal sends them to the command too, and
// this process stops as any other does.
var forwarded = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
	syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT, syscall.SIGWINCH,
}

// signalCatcher passes signals of this process on to the command.
type signalCatcher struct {
	caught chan os.Signal
	// early came while the command was being set up. If it runs nevertheless,
	// they are its own.
	early []os.Signal
}

// catchSignals begins to collect signals, so that none is lost before the
// command runs. Signals that this process was started to ignore, as by nohup,
// stay ignored, here and in the command.
func catchSignals() *signalCatcher {
	s := &signalCatcher{caught: make(chan os.Signal, 64)}
	for _, sig := range forwarded {
		if !signal.Ignored(sig) {
			signal.Notify(s.caught, sig)
		}
	}
	return s
}

func (s *signalCatcher) stop() { signal.Stop(s.caught) }

// errInterrupted says that a signal came before the command ran.
var errInterrupted = errors.New("interrupted before the command was executed")

// cancelOnSignal returns a context that ends when a signal that ends a process
// comes before done is called.
func (s *signalCatcher) cancelOnSignal(parent context.Context) (ctx context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(parent)
	over := make(chan struct{})
	stopped := make(chan struct{})
	go s.awaitCancel(cancel, over, stopped)
	return ctx, func() {
		close(over)
		<-stopped
		cancel(nil)
	}
}

// awaitCancel cancels at the first signal that ends a process. cancelOnSignal
// starts it; closing over ends it, and stopped tells.
func (s *signalCatcher) awaitCancel(cancel context.CancelCauseFunc, over <-chan struct{}, stopped chan<- struct{}) {
	defer close(stopped)
	for {
		select {
		case sig := <-s.caught:
			s.early = append(s.early, sig)
			if sig != syscall.SIGWINCH && sig != syscall.SIGCONT {
				cancel(errInterrupted)
			}
		case <-over:
			return
		}
	}
}

// forwardTo sends what was and is caught to the command until over is closed.
// The runner starts it and closes over.
func (s *signalCatcher) forwardTo(process *os.Process, over <-chan struct{}) {
	for _, sig := range s.early {
		forward(process, sig)
	}
	for {
		select {
		case sig := <-s.caught:
			forward(process, sig)
		case <-over:
			return
		}
	}
}

func forward(process *os.Process, sig os.Signal) {
	if !fromTerminal(sig) {
		process.Signal(sig) // fails only when the command has ended
	}
}

// fromTerminal reports whether a signal is one that the terminal has sent to the
// command as well: it sends them to the whole of its foreground process group,
// and the command is in ours.
func fromTerminal(sig os.Signal) bool {
	switch sig {
	case syscall.SIGINT, syscall.SIGQUIT, syscall.SIGWINCH:
	default:
		return false
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return false // no terminal
	}
	defer tty.Close()
	foreground, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp()
}

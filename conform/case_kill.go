package conform

import (
	"fmt"
	"time"
)

const sectionKill = "§3 Lifecycle & Ordering (a delete must be executed even if the add fails)"

func killCases() []definition {
	return []definition{
		{name: "kill/ADD", level: Must, section: sectionKill, once: true,
			summary: "when an ADD is killed at any time, DEL succeeds, and ADD after it", run: killAdd},
		{name: "kill/ADD-leaves-nothing", level: Should, section: sectionKill, once: true,
			summary: "when an ADD is killed at any time, DEL leaves nothing on the host",
			run:     func(t *trial) error { return t.clean(func() error { return killAdd(t) }) }},
		{name: "kill/DEL", level: Must, section: "§2 DEL (multiple DELs)", once: true,
			summary: "when a DEL is killed at any time, the next one finishes it", run: killDel},
		{name: "kill/namespace", level: Must, section: sectionKill, once: true,
			summary: "when the namespace ends during an ADD, DEL succeeds, and ADD in a new namespace", run: killNamespace},
	}
}

// killed starts an invocation and kills the plugin, and it alone, after a random
// part of the time that one takes when it is left in peace.
func (t *trial) killed(r *request, usual time.Duration) (*Call, error) {
	p, err := r.start()
	if err != nil {
		return nil, err
	}
	t.random.waitPart(usual)
	_ = p.cmd.Process.Kill() // it may have ended
	c := p.wait()
	r.finish(c)
	return c, nil
}

// timed measures an ADD and a DEL that are left in peace.
func (t *trial) timed() (add, del time.Duration, err error) {
	a, err := t.attached()
	if err != nil {
		return 0, 0, err
	}
	add = t.calls[len(t.calls)-1].Took
	if err := t.del(a); err != nil {
		return 0, 0, err
	}
	return add, t.calls[len(t.calls)-1].Took, nil
}

// rounds runs fn as often as plugins are to be killed.
func (t *trial) rounds(fn func() error) error {
	if t.conf.Kills < 0 {
		return &unsupportedError{why: "killing is turned off"}
	}
	for n := range t.conf.Kills {
		if err := fn(); err != nil {
			return fmt.Errorf("round %d of %d (seed %d): %w", n+1, t.conf.Kills, t.conf.Seed, err)
		}
	}
	return nil
}

func killAdd(t *trial) error {
	usual, _, err := t.timed()
	if err != nil {
		return err
	}
	return t.rounds(func() error {
		a, err := t.fresh()
		if err != nil {
			return err
		}
		if _, err := t.killed(t.request("ADD", a), usual); err != nil {
			return err
		}
		if err := t.del(a); err != nil {
			return fmt.Errorf("after an ADD that was killed: %w", err)
		}
		if err := t.settled(a.c.untouched); err != nil {
			return fmt.Errorf("after an ADD that was killed, and DEL: %w", err)
		}
		return t.addAgain(a)
	})
}

// addAgain adds and deletes, with nothing in the way.
func (t *trial) addAgain(a *attachment) error {
	res, err := t.add(a)
	if err != nil {
		return fmt.Errorf("ADD again: %w", err)
	}
	if err := a.has(res); err != nil {
		return fmt.Errorf("after ADD again: %w", err)
	}
	return t.del(a)
}

func killDel(t *trial) error {
	_, usual, err := t.timed()
	if err != nil {
		return err
	}
	return t.rounds(func() error {
		a, err := t.attached()
		if err != nil {
			return err
		}
		if _, err := t.killed(t.request("DEL", a), usual); err != nil {
			return err
		}
		if err := t.del(a); err != nil {
			return fmt.Errorf("after a DEL that was killed: %w", err)
		}
		if err := t.settled(a.gone); err != nil {
			return fmt.Errorf("after a DEL that was killed, and another: %w", err)
		}
		return t.addAgain(a)
	})
}

// killNamespace ends the container while it is added. The ADD may succeed or
// fail.
func killNamespace(t *trial) error {
	usual, _, err := t.timed()
	if err != nil {
		return err
	}
	return t.rounds(func() error {
		a, err := t.fresh()
		if err != nil {
			return err
		}
		p, err := t.request("ADD", a).start()
		if err != nil {
			return err
		}
		t.random.waitPart(usual)
		a.c.destroy()
		p.wait()
		if err := t.del(a); err != nil {
			return fmt.Errorf("after the namespace ended during ADD: %w", err)
		}
		c, err := t.container()
		if err != nil {
			return err
		}
		c.id = a.c.id
		return t.addAgain(t.in(c, a.ifName))
	})
}

package conform

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
)

const sectionParallel = "§3 Lifecycle & Ordering (concurrently across different containers)"

func parallelCases() []definition {
	return []definition{
		{name: "parallel/ADD-DEL", level: Must, section: sectionParallel, once: true,
			summary: "ADDs of different containers at once all succeed, with addresses of their own, and so do their DELs", run: parallelAddDel},
		{name: "parallel/mixed", level: Must, section: sectionParallel, once: true,
			summary: "ADDs of some containers and DELs of others at once all succeed", run: parallelMixed},
		{name: "parallel/leaves-nothing", level: Should, section: sectionParallel, once: true,
			summary: "ADDs and DELs at once leave nothing on the host",
			run:     func(t *trial) error { return t.clean(func() error { return parallelAddDel(t) }) }},
		{name: "parallel/DEL-same", level: Should, section: "§2 DEL (multiple DELs)", once: true,
			summary: "DELs of one attachment at once all succeed", run: parallelSame},
		{name: "parallel/two-interfaces", level: May, section: "go-cni attaches a container's networks at once; §3 forbids it", once: true,
			summary: "two ADDs into one container at once succeed, and so do their DELs", run: parallelInOne},
	}
}

// outcome is what came of one of several invocations at once.
type outcome struct {
	call *Call
	err  error
}

// together runs requests at once and returns what came of each.
func together(requests []*request) []outcome {
	out := make([]outcome, len(requests))
	var started []*process
	for n, r := range requests {
		p, err := r.start() // a moment each, while those before run
		out[n].err = err
		started = append(started, p)
	}
	var wg sync.WaitGroup
	for n, p := range started {
		if p != nil {
			wg.Go(func() { out[n].call = p.wait() })
		}
	}
	wg.Wait()
	for n, o := range out {
		if o.call != nil {
			requests[n].finish(o.call)
		}
	}
	return out
}

// many makes attachments of as many containers as are to be handled at once.
func (t *trial) many() ([]*attachment, error) {
	var all []*attachment
	for range t.conf.Parallel {
		a, err := t.fresh()
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// addAll adds attachments at once and judges each.
func (t *trial) addAll(all []*attachment) error {
	seen := make(map[netip.Addr]string)
	var faults []error
	for n, o := range together(t.requests("ADD", all)) {
		if o.err != nil {
			return o.err
		}
		a := all[n]
		res, err := a.result(o.call)
		if err == nil {
			err = errors.Join(a.has(res), a.distinct(res, seen))
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("container %d of %d: %w", n+1, len(all), err))
		}
	}
	return errors.Join(faults...)
}

// requests makes one of each attachment.
func (t *trial) requests(verb string, all []*attachment) []*request {
	var rs []*request
	for _, a := range all {
		rs = append(rs, t.request(verb, a))
	}
	return rs
}

// delAll deletes attachments at once and judges each.
func (t *trial) delAll(all []*attachment) error {
	var faults []error
	for n, o := range together(t.requests("DEL", all)) {
		if o.err != nil {
			return o.err
		}
		err := o.call.succeeded()
		if err == nil {
			err = t.settled(all[n].gone)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("container %d of %d: %w", n+1, len(all), err))
		}
	}
	return errors.Join(faults...)
}

func parallelAddDel(t *trial) error {
	all, err := t.many()
	if err != nil {
		return err
	}
	if err := t.addAll(all); err != nil {
		return err
	}
	return t.delAll(all)
}

// parallelMixed deletes one half while it adds the other.
func parallelMixed(t *trial) error {
	old, err := t.many()
	if err != nil {
		return err
	}
	if err := t.addAll(old); err != nil {
		return err
	}
	fresh, err := t.many()
	if err != nil {
		return err
	}
	var mixed []*request
	for n := range old {
		mixed = append(mixed, t.request("DEL", old[n]), t.request("ADD", fresh[n]))
	}
	var faults []error
	for n, o := range together(mixed) {
		if o.err != nil {
			return o.err
		}
		err := o.call.succeeded()
		if n%2 == 1 && err == nil {
			var res *addResult
			if res, err = fresh[n/2].result(o.call); err == nil {
				err = fresh[n/2].has(res)
			}
		}
		faults = append(faults, err)
	}
	return errors.Join(errors.Join(faults...), t.delAll(fresh))
}

func parallelSame(t *trial) error {
	a, err := t.attached()
	if err != nil {
		return err
	}
	var all []*attachment
	for range t.conf.Parallel {
		all = append(all, a)
	}
	return t.delAll(all)
}

func parallelInOne(t *trial) error {
	c, err := t.container()
	if err != nil {
		return err
	}
	both := []*attachment{t.in(c, "eth0"), t.in(c, "net1")}
	if err := t.addAll(both); err != nil {
		return err
	}
	return t.delAll(both)
}

package conform

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/usernet/usernet/internal/undo"
)

// trial is one run of one case. What it makes is taken away at its end.
type trial struct {
	*world
	version string
	calls   []*Call
	undo    undo.List
}

// unsupportedError says that a case cannot be tried on this plugin; it is no fault.
type unsupportedError struct {
	why string
	err error // that shows it; nil: none
}

func (e *unsupportedError) Error() string { return e.why }
func (e *unsupportedError) Unwrap() error { return e.err }

// attachment is what the specification identifies by container ID and interface
// name, with the network it is of.
type attachment struct {
	c       *container
	ifName  string
	network object
	// prev is what the last ADD printed; nil before.
	prev json.RawMessage
	// dirty is set from an ADD until a DEL succeeds.
	dirty bool
}

// container makes a container for this trial.
func (t *trial) container() (*container, error) { return t.world.container(&t.undo) }

// in makes an attachment of a container, which is not yet added. If it is still
// there at the trial's end it is deleted.
func (t *trial) in(c *container, ifName string) *attachment {
	a := &attachment{c: c, ifName: ifName, network: t.network}
	t.undo.Add(func() {
		if a.dirty {
			_, _ = t.request("DEL", a).run() // the verdict is passed already
		}
	})
	return a
}

// fresh makes an attachment eth0 of a new container.
func (t *trial) fresh() (*attachment, error) {
	c, err := t.container()
	if err != nil {
		return nil, err
	}
	return t.in(c, "eth0"), nil
}

// attached makes an attachment of a new container and adds it.
func (t *trial) attached() (*attachment, error) {
	a, err := t.fresh()
	if err != nil {
		return nil, err
	}
	_, err = t.add(a)
	return a, err
}

// bystander returns an attachment that the case may look at and must not touch.
// It stays for the next case, unless this one fails.
func (t *trial) bystander() (*attachment, error) {
	if s := t.stander; s != nil && s.t.version == t.version {
		return s.a, nil
	}
	t.dismiss()
	s := &bystander{t: &trial{world: t.world, version: t.version}}
	var err error
	if s.a, err = s.t.attached(); err != nil {
		s.t.undo.Run()
		return nil, err
	}
	t.stander = s
	return s.a, nil
}

// dismiss takes the bystander away.
func (w *world) dismiss() {
	if w.stander != nil {
		w.stander.t.undo.Run()
		w.stander = nil
	}
}

// request is an invocation that is being put together. Cases change its parts.
type request struct {
	t    *trial
	a    *attachment // nil for verbs without
	env  map[string]string
	conf object
	// stdin replaces the configuration's text, if not nil.
	stdin *string
}

// request makes the invocation that a runtime would make. a is nil for verbs
// that are not about an attachment.
func (t *trial) request(verb string, a *attachment) *request {
	r := &request{t: t, a: a, conf: t.world.network}
	r.env = map[string]string{"CNI_COMMAND": verb, "CNI_PATH": strings.Join(t.conf.Path, string(os.PathListSeparator))}
	if a != nil {
		r.conf = a.network
		maps.Copy(r.env, map[string]string{"CNI_CONTAINERID": a.c.id, "CNI_NETNS": a.c.path, "CNI_IFNAME": a.ifName})
	}
	r.conf = r.conf.with(object{"cniVersion": t.version})
	if a != nil && a.prev != nil && verb != "ADD" && atLeast(t.version, "0.4.0") {
		r.conf["prevResult"] = a.prev
	}
	return r
}

// text sets what the plugin reads instead of the configuration.
func (r *request) text(stdin string) *request {
	r.stdin = &stdin
	return r
}

// set changes the configuration; nil deletes a key.
func (r *request) set(more object) *request {
	r.conf = r.conf.with(more)
	return r
}

// setenv changes the environment.
func (r *request) setenv(name, value string) *request {
	r.env[name] = value
	return r
}

// unset removes a variable.
func (r *request) unset(name string) *request {
	delete(r.env, name)
	return r
}

// start starts the invocation.
func (r *request) start() (*process, error) {
	if err := r.t.ctx.Err(); err != nil && r.env["CNI_COMMAND"] != "DEL" {
		return nil, err
	}
	stdin := r.stdin
	if stdin == nil {
		b, err := json.Marshal(r.conf)
		if err != nil {
			return nil, fmt.Errorf("encode the configuration: %w", err)
		}
		text := string(b)
		stdin = &text
	}
	if r.a != nil && r.env["CNI_COMMAND"] == "ADD" {
		r.a.dirty = true
	}
	p, err := r.t.world.start(r.env, *stdin)
	if err != nil {
		return nil, err
	}
	r.t.calls = append(r.t.calls, p.call)
	return p, nil
}

// finish notes what the invocation's end says of the attachment.
func (r *request) finish(c *Call) {
	if r.a != nil && c.Status == 0 && c.verb() == "DEL" && r.stdin == nil &&
		r.env["CNI_IFNAME"] == r.a.ifName && r.env["CNI_CONTAINERID"] == r.a.c.id {
		r.a.dirty = false
	}
}

// run carries the invocation out. The error is the suite's, not the plugin's.
func (r *request) run() (*Call, error) {
	p, err := r.start()
	if err != nil {
		return nil, err
	}
	c := p.wait()
	r.finish(c)
	return c, nil
}

// expect runs the invocation and judges its outcome.
func (r *request) expect(judge func(*Call) error) error {
	c, err := r.run()
	if err != nil {
		return err
	}
	return judge(c)
}

// add runs ADD, which has to succeed, and decodes its result.
func (t *trial) add(a *attachment) (*addResult, error) { return t.added(t.request("ADD", a)) }

// added runs a request for ADD, which has to succeed.
func (t *trial) added(r *request) (*addResult, error) {
	c, err := r.run()
	if err != nil {
		return nil, err
	}
	return r.a.result(c)
}

// result takes over what a successful ADD printed.
func (a *attachment) result(c *Call) (*addResult, error) {
	if err := c.succeeded(); err != nil {
		return nil, err
	}
	res, err := parseResult(c.Stdout)
	if err != nil {
		return nil, err
	}
	a.prev = json.RawMessage(strings.TrimSpace(c.Stdout))
	return res, nil
}

// del runs DEL, which has to succeed.
func (t *trial) del(a *attachment) error { return t.request("DEL", a).expect((*Call).succeeded) }

// check runs CHECK, which has to succeed.
func (t *trial) check(a *attachment) error { return t.request("CHECK", a).expect((*Call).succeeded) }

// interfaces returns the names of a container's interfaces without lo.
func (c *container) interfaces() ([]string, error) {
	var names []string
	err := c.ns.Do(func() error {
		list, err := net.Interfaces()
		for _, i := range list {
			if i.Name != "lo" {
				names = append(names, i.Name)
			}
		}
		return err
	})
	return names, err
}

// gone is nil when the attachment's interface is not in its container.
func (a *attachment) gone() error {
	names, err := a.c.interfaces()
	if err != nil {
		return err
	}
	if slices.Contains(names, a.ifName) {
		return fmt.Errorf("interface %s is in the container", a.ifName)
	}
	return nil
}

// untouched is nil when the container has no interface but lo.
func (c *container) untouched() error {
	names, err := c.interfaces()
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("the container has interfaces: %s", strings.Join(names, ", "))
	}
	return err
}

// link looks at the attachment's interface and its addresses.
func (a *attachment) link() (i *net.Interface, addrs []netip.Prefix, err error) {
	err = a.c.ns.Do(func() error {
		var err error
		if i, err = net.InterfaceByName(a.ifName); err != nil {
			return fmt.Errorf("interface %s in the container: %w", a.ifName, err)
		}
		list, err := i.Addrs()
		for _, l := range list {
			if n, ok := l.(*net.IPNet); ok {
				addr, _ := netip.AddrFromSlice(n.IP)
				ones, _ := n.Mask.Size()
				addrs = append(addrs, netip.PrefixFrom(addr.Unmap(), ones))
			}
		}
		return err
	})
	return i, addrs, err
}

// alive is nil when the attachment is as its ADD's result says: the interface is
// there, up, and has the addresses. CHECK is asked too where there is one.
func (t *trial) alive(a *attachment) error {
	res, err := parseResult(string(a.prev))
	if err != nil {
		return err
	}
	if err := a.has(res); err != nil {
		return err
	}
	if !atLeast(t.version, "0.4.0") {
		return nil
	}
	return t.check(a)
}

// has is nil when the interface is there, up, and has the result's addresses.
func (a *attachment) has(res *addResult) error {
	i, have, err := a.link()
	if err != nil {
		return err
	}
	var faults []error
	if i.Flags&net.FlagUp == 0 {
		faults = append(faults, fmt.Errorf("interface %s is down", a.ifName))
	}
	want, err := res.addresses(a.c.path)
	if err != nil {
		return err
	}
	for _, p := range want {
		if !slices.ContainsFunc(have, func(h netip.Prefix) bool { return h.Addr() == p.Addr() }) {
			faults = append(faults, fmt.Errorf("interface %s has %v, not the result's %v", a.ifName, have, p))
		}
	}
	return errors.Join(faults...)
}

// clean runs fn, and then waits until host namespace and container are as they
// were before. What a plugin shares among attachments, such as a bridge, is made
// by the first ADD of all, which warms up.
func (t *trial) clean(fn func() error) error {
	if err := t.warm(); err != nil {
		return err
	}
	before, err := look(t.host)
	if err != nil {
		return err
	}
	if err := fn(); err != nil {
		return err
	}
	return t.settled(func() error {
		after, err := look(t.host)
		if err != nil {
			return err
		}
		if left := after.more(before); len(left) > 0 {
			return fmt.Errorf("left in the host namespace: %s", strings.Join(left, "; "))
		}
		return nil
	})
}

// warm adds and deletes an attachment, once in a run and version.
func (t *trial) warm() error {
	if t.world.warm[t.version] {
		return nil
	}
	a, err := t.attached()
	if err != nil {
		return fmt.Errorf("the first attachment of version %s: %w", t.version, err)
	}
	if err := t.del(a); err != nil {
		return fmt.Errorf("the first attachment of version %s: %w", t.version, err)
	}
	t.world.warm[t.version] = true
	return nil
}

// attachedOther makes an attachment of the second network, and adds it. If the plugin
// cannot have the second network, the case is not supported.
func (t *trial) attachedOther() (*attachment, error) {
	a, err := t.fresh()
	if err != nil {
		return nil, err
	}
	a.network = t.world.other
	if _, err := t.add(a); err != nil {
		if len(t.conf.Other) > 0 {
			return nil, err
		}
		return nil, &unsupportedError{why: "a second network of the same configuration is refused; give one with --other", err: err}
	}
	return a, nil
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/daemon"
	"github.com/usernet/usernet/internal/sandbox"
)

// runNetwork is a network with what run does with it.
type runNetwork interface {
	sandbox.Network
	// record starts to write the packets of a sandbox to w; a nil w is no
	// recording.
	record(name string, w io.Writer) error
	stopRecording() error
	// flows returns the conversations of a sandbox since a time.
	flows(ctx context.Context, name string, since time.Time) ([]control.Flow, error)
	close() error
}

func (r *runner) openNetwork(p *plan) error {
	if p.network != "" {
		client := r.client()
		r.network = &memberNetwork{Member: sandbox.NewMember(client, p.network), client: client, network: p.network}
		return nil
	}
	p.private.Log = r.log
	private, err := sandbox.NewPrivate(p.private)
	if err != nil {
		return err
	}
	r.network = &ownNetwork{Private: private}
	if shadowed := sandbox.Shadows(p.private.Subnets); len(shadowed) > 0 {
		r.warn("the chosen subnet overlaps %s of this machine, which cannot be reached from it", list(shadowed))
	}
	return nil
}

// ownNetwork is the sandbox's own.
type ownNetwork struct {
	*sandbox.Private
	recording *sandbox.Recording
}

func (n *ownNetwork) record(name string, w io.Writer) (err error) {
	if w == nil {
		return nil
	}
	n.recording, err = sandbox.Record(n.Switch(), name, w)
	return err
}

func (n *ownNetwork) stopRecording() error {
	if n.recording == nil {
		return nil
	}
	missed, err := n.recording.Stop()
	if err == nil && missed > 0 {
		err = fmt.Errorf("%d packets came faster than they could be written", missed)
	}
	return err
}

func (n *ownNetwork) flows(context.Context, string, time.Time) ([]control.Flow, error) {
	flows := []control.Flow{}
	for _, f := range n.Switch().Flows() {
		flows = append(flows, daemon.FlowOf(f))
	}
	return flows, nil
}

func (n *ownNetwork) close() error { return n.Close() }

// memberNetwork is one of the daemon's.
type memberNetwork struct {
	*sandbox.Member
	client  *control.Client
	network string

	cancel    context.CancelFunc // ends the recording
	recording sync.WaitGroup
	err       error // of the recording, after it
}

func (n *memberNetwork) record(name string, w io.Writer) error {
	if w == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	begun := &firstWrite{w: w, begun: make(chan struct{})}
	ended := make(chan struct{})
	n.recording.Add(1)
	go n.capture(ctx, name, begun, ended)
	select {
	case <-begun.begun: // the head of the file: the daemon captures from now on
		return nil
	case <-ended:
		return n.stopRecording()
	}
}

// firstWrite closes begun at its first write.
type firstWrite struct {
	w     io.Writer
	once  sync.Once
	begun chan struct{}
}

func (f *firstWrite) Write(b []byte) (int, error) {
	f.once.Do(func() { close(f.begun) })
	return f.w.Write(b)
}

// capture copies the daemon's capture of a sandbox. record starts it;
// stopRecording ends it, or the link's end; ended tells.
func (n *memberNetwork) capture(ctx context.Context, name string, w io.Writer, ended chan<- struct{}) {
	defer n.recording.Done()
	defer close(ended)
	n.err = n.client.Capture(ctx, control.CaptureQuery{Link: name, Network: n.network}, w)
}

func (n *memberNetwork) stopRecording() error {
	if n.cancel == nil {
		return nil
	}
	n.cancel()
	n.recording.Wait()
	return n.err
}

// flows judges by name and time: the daemon knows a link that is gone by its name
// only, which others may have had before.
func (n *memberNetwork) flows(ctx context.Context, name string, since time.Time) ([]control.Flow, error) {
	all, err := n.client.Flows(ctx, control.FlowQuery{Network: n.network})
	if err != nil {
		return nil, err
	}
	mine := []control.Flow{}
	for _, f := range all {
		if !f.Start.Before(since) && (isLink(f.Link, name) || isLink(f.Peer, name)) {
			mine = append(mine, f)
		}
	}
	return mine, nil
}

// isLink reports whether a flow's end is the sandbox of that name.
func isLink(end, name string) bool {
	key, err := control.ParseLinkKey(end)
	return end == name || err == nil && key.Container == name
}

func (n *memberNetwork) close() error { return n.stopRecording() }

// outputs are the files that run writes beside the command.
type outputs struct {
	pcap, summary io.Writer // nil: not wanted
	files         []*os.File
}

// openOutputs opens them before the command runs: a path that cannot be written
// is an error now and not when the work is done.
func (r *runner) openOutputs() (*outputs, error) {
	o := &outputs{}
	var errs []error
	create := func(path string) io.Writer {
		f, err := os.Create(path)
		if err != nil {
			errs = append(errs, err)
			return nil
		}
		o.files = append(o.files, f)
		return f
	}
	if r.flags.pcap != "" {
		o.pcap = create(r.flags.pcap)
	}
	switch r.flags.json {
	case "":
	case jsonToStderr:
		o.summary = r.stderr
	default:
		o.summary = create(r.flags.json)
	}
	if err := errors.Join(errs...); err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

func (o *outputs) close() {
	for _, f := range o.files {
		f.Close()
	}
}

// summary is what --json writes.
type summary struct {
	Name       string         `json:"name"`
	Network    string         `json:"network,omitempty"` // of the daemon
	Addrs      []netip.Prefix `json:"addrs"`
	Published  []string       `json:"published,omitempty"` // HOSTIP:PORT:PORT/PROTO
	Started    time.Time      `json:"started"`
	Seconds    float64        `json:"seconds"`
	ExitStatus int            `json:"exitStatus"`
	Flows      []control.Flow `json:"flows"`
}

func (r *runner) summarize(p *plan, process *sandbox.Process, status int, w io.Writer) error {
	if w == nil {
		return nil
	}
	flows, err := r.network.flows(context.Background(), p.name, r.started)
	if err != nil {
		return fmt.Errorf("list the flows: %w", err)
	}
	s := summary{
		Name: p.name, Network: p.network, Addrs: process.Settings().Addrs, Started: r.started.UTC(),
		Seconds: time.Since(r.started).Seconds(), ExitStatus: status, Flows: flows,
	}
	for _, pub := range process.Settings().Published {
		s.Published = append(s.Published, pub.String())
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(s); err != nil {
		return fmt.Errorf("write the summary: %w", err)
	}
	return nil
}

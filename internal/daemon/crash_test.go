package daemon

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/ipam"
)

// child is a daemon in a process of its own.
type child struct {
	*control.Client
	cmd *exec.Cmd
}

// startChild runs the test binary as a daemon on dir.
func startChild(t testing.TB, dir string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	c := &child{Client: control.Dial(filepath.Join(dir, "s.sock")), cmd: cmd}
	c.begin(t)
	return c
}

// begin starts the process, to be killed at the test's end, and waits until it
// serves.
func (c *child) begin(t testing.TB) {
	t.Helper()
	c.cmd.Stderr = testWriter{t}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("child said %q, %v", line, err)
	}
}

// kill ends it without a chance to clean up. Killing twice does nothing.
func (c *child) kill() {
	if c.cmd.ProcessState == nil {
		_ = c.cmd.Process.Kill() // it may have gone already
		_ = c.cmd.Wait()         // says that it was killed
	}
}

// TestNetnsKillInTheMiddleOfAttaches kills the daemon at random points while
// clients attach, commit and detach, and holds what the next one finds against
// what the clients were told: no address is held twice or leaked, and nothing
// that was committed is forgotten before its DEL.
func TestNetnsKillInTheMiddleOfAttaches(t *testing.T) {
	dir := t.TempDir()
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	tuns := make([]*os.File, 8)
	for i := range tuns {
		tuns[i], _ = tunFile(t)
	}
	promised := 0
	for round := range rounds {
		c := startChild(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		tellers := make([]*teller, len(tuns))
		for i, tun := range tuns {
			tellers[i] = &teller{t: t, c: c.Client, tun: tun, name: fmt.Sprintf("r%d-w%d", round, i)}
			wg.Go(func() { tellers[i].run(ctx) })
		}
		timer := time.NewTimer(time.Duration(5+rand.IntN(120)) * time.Millisecond)
		<-timer.C // the point of the kill is random by design
		c.kill()
		cancel()
		wg.Wait()
		checkAfterCrash(t, dir, tellers)
		for _, w := range tellers {
			promised += len(w.committed)
		}
	}
	t.Logf("%d kills; %d links were committed before them", rounds, promised)
	if promised == 0 {
		t.Error("no kill came after a commit: the test has seen nothing")
	}
}

// teller attaches and detaches in turn, and keeps what it was told.
type teller struct {
	t    *testing.T
	c    *control.Client
	tun  *os.File
	name string

	committed map[control.LinkKey]bool // certainly there
	unsure    map[control.LinkKey]bool // the daemon died before it answered
}

func (w *teller) run(ctx context.Context) {
	w.committed, w.unsure = map[control.LinkKey]bool{}, map[control.LinkKey]bool{}
	for i := 0; ctx.Err() == nil; i++ {
		req := request(fmt.Sprintf("%s-%d", w.name, i))
		key := req.Key()
		a, err := w.c.Attach(ctx, req, w.tun)
		if err != nil {
			return // nothing was promised
		}
		w.unsure[key] = true
		err = a.Commit(ctx)
		a.Close()
		if err != nil {
			return
		}
		delete(w.unsure, key)
		w.committed[key] = true
		if i%2 == 1 {
			w.unsure[key] = true
			delete(w.committed, key)
			if _, err := w.c.Detach(ctx, key); err != nil {
				return
			}
			delete(w.unsure, key)
		}
	}
}

// checkAfterCrash looks at the state as the next daemon restores it.
func checkAfterCrash(t *testing.T, dir string, tellers []*teller) {
	t.Helper()
	checkLeasesUnique(t, filepath.Join(dir, "state", "state.db"))
	r := start(t, Config{Socket: filepath.Join(dir, "s.sock"), StateDir: filepath.Join(dir, "state")})
	defer func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	}()
	w := r.world(t)
	if w.Leases != len(w.Links) || w.Switch != 0 || !slices.Equal(w.Links, w.Records) {
		t.Errorf("after the crash: %+v, want as many links and leases as records", w)
	}
	present := map[string]bool{}
	for _, id := range w.Links {
		present[id] = true
	}
	for _, teller := range tellers {
		for key := range teller.committed {
			if !present[key.String()] {
				t.Errorf("%s was committed and is forgotten", key)
			}
			delete(present, key.String())
		}
		for key := range teller.unsure {
			delete(present, key.String())
		}
	}
	for id := range present {
		t.Errorf("%s is on record, and nobody was promised it", id)
	}
	st, err := r.Status(t.Context(), "")
	if err != nil || !slices.Equal(st.Lost, w.Links) {
		t.Errorf("status lists %v as lost, want %v (%v)", st.Lost, w.Links, err)
	}
	// GC clears what is lost.
	if _, err := r.GC(t.Context(), "net", control.GCRequest{Owner: "test"}); err != nil {
		t.Error(err)
	}
	if w := r.world(t); len(w.Links)+len(w.Records)+w.Leases != 0 {
		t.Errorf("after GC: %+v", w)
	}
}

// checkLeasesUnique reads the leases as the dead daemon left them: an address
// must have one holder.
func checkLeasesUnique(t *testing.T, path string) {
	t.Helper()
	s, err := openStore(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	holders := map[netip.Addr]string{}
	state, err := ipam.NewBoltStore(s.db, ipamBucket("net")).Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range state.Leases {
		for _, p := range l.Addrs {
			if other, twice := holders[p.Addr()]; twice {
				t.Errorf("%v is leased to %s and %s", p.Addr(), other, l.Owner)
			}
			holders[p.Addr()] = string(l.Owner)
		}
	}
}

// TestNetnsRestartLosesLinksHonestly: the descriptors go with the process; the
// next daemon says so, and DEL or a new ADD mends it.
func TestNetnsRestartLosesLinksHonestly(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg)
	a := attach(t, r.Client, request("a"))
	b := attach(t, r.Client, request("b"))
	req := request("gone")
	req.Ephemeral = true
	attach(t, r.Client, req)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	st, err := r.Status(t.Context(), "")
	if err != nil || !st.Ready || !slices.Equal(st.Lost, []string{a.key.String(), b.key.String()}) || len(st.Problems) != 1 {
		t.Errorf("status %+v, %v", st, err)
	}
	l, err := r.Link(t.Context(), a.key)
	if err != nil || l.State != control.LinkLost || len(l.Names) != 0 || len(l.Addrs) != 2 {
		t.Errorf("link %+v, %v", l, err)
	}
	wantCode(t, r.Capture(t.Context(), control.CaptureQuery{Link: "a"}, testWriter{t}), control.CodeNotFound)
	if removed, err := r.Detach(t.Context(), a.key); !removed || err != nil {
		t.Errorf("detach of a lost link: %v, %v", removed, err)
	}
	if other := attach(t, r.Client, request("c")); other.reply.Addrs[0] == a.reply.Addrs[0] || other.reply.Addrs[0] == b.reply.Addrs[0] {
		t.Errorf("an address of a lost link was given out at once: %v", other.reply.Addrs)
	}
	if again := attach(t, r.Client, request("b")); !slices.Equal(again.reply.Addrs, b.reply.Addrs) {
		t.Errorf("attached anew with %v, had %v", again.reply.Addrs, b.reply.Addrs)
	}
	if st, err = r.Status(t.Context(), ""); err != nil || len(st.Lost) != 0 || st.Links != 2 {
		t.Errorf("status %+v, %v", st, err)
	}
	if err := r.RemoveNetwork(t.Context(), "net"); control.CodeOf(err) != control.CodeNetworkInUse {
		t.Errorf("network with a link was removed: %v", err)
	}
}

// TestNetnsTombstonesAreReplayed: DELs that came while no daemon ran are done
// before the next one serves, unless the link is a later one.
func TestNetnsTombstonesAreReplayed(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg)
	a, b := attach(t, r.Client, request("a")), attach(t, r.Client, request("b"))
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for _, stone := range []control.Tombstone{
		{Link: a.key, Deleted: time.Now()},
		{Link: b.key, Deleted: time.Now().Add(-time.Hour)}, // of an earlier link of that key
		{Link: control.LinkKey{Network: "gone", Container: "c", IfName: "eth0"}, Deleted: time.Now()},
	} {
		if err := stone.Write(cfg.Socket); err != nil {
			t.Fatal(err)
		}
	}
	r = start(t, cfg)
	if w := r.world(t); !slices.Equal(w.Links, []string{b.key.String()}) || !slices.Equal(w.Records, w.Links) {
		t.Errorf("after the tombstones: %+v, want b alone", w)
	}
	if left, err := control.Tombstones(cfg.Socket); err != nil || len(left) != 0 {
		t.Errorf("tombstones left: %v, %v", left, err)
	}
}

// TestNetnsReboot: records of another boot are forgotten without a trace.
func TestNetnsReboot(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg)
	a := attach(t, r.Client, request("a"))
	l := r.d.link(a.key)
	rec := *l.rec
	rec.State, rec.BootID = control.LinkAttached, "an earlier boot"
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s, err := openStore(filepath.Join(cfg.StateDir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.putLink(&rec); err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	if w := r.world(t); len(w.Links)+len(w.Records)+w.Leases != 0 {
		t.Errorf("after the reboot: %+v", w)
	}
}

// TestNetnsStopUndoesWhatIsNotCommitted: a link whose maker still waits is not
// left as lost.
func TestNetnsStopUndoesWhatIsNotCommitted(t *testing.T) {
	checkLeaks(t)
	cfg := testConfig(t)
	r := start(t, cfg)
	tun, _ := tunFile(t)
	a, err := r.Attach(t.Context(), request("a"), tun)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if err := a.Commit(t.Context()); err == nil {
		t.Error("commit to a daemon that has ended succeeded")
	}
	r = start(t, cfg)
	if w := r.world(t); len(w.Links)+len(w.Records)+w.Leases != 0 {
		t.Errorf("left: %+v", w)
	}
}

// TestNetnsStopWaitsForUndo: an undo that takes its time is not cut short by
// the end of the daemon.
func TestNetnsStopWaitsForUndo(t *testing.T) {
	cfg := testConfig(t)
	r := start(t, cfg)
	tun, _ := tunFile(t)
	req := request("a")
	a, err := r.Attach(t.Context(), req, tun)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	unlock, err := r.d.keys.lock(t.Context(), req.Key()) // the undo waits for this
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.stop() }()
	timer := time.NewTimer(300 * time.Millisecond)
	select {
	case err := <-done:
		unlock()
		t.Fatalf("the daemon ended (%v) before the undo", err)
	case <-timer.C:
	}
	unlock()
	<-done
	r = start(t, cfg)
	if w := r.world(t); len(w.Records) != 0 {
		t.Errorf("left: %+v", w)
	}
}

// TestNetnsIdleDaemonWaitsForLinks: links keep it alive.
func TestNetnsIdleDaemonWaitsForLinks(t *testing.T) {
	cfg := testConfig(t)
	cfg.IdleExit = 100 * time.Millisecond
	ready := make(chan struct{})
	cfg.Ready = func() { close(ready) }
	tun, _ := tunFile(t)
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- d.Run(context.Background()) }()
	<-ready
	c := control.Dial(cfg.Socket)
	a, err := c.Attach(t.Context(), request("a"), tun)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	timer := time.NewTimer(4 * cfg.IdleExit)
	select {
	case err := <-done:
		t.Fatalf("the daemon ended with a link: %v", err)
	case <-timer.C:
	}
	if _, err := c.Detach(t.Context(), control.LinkKey{Network: "net", Container: "a", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

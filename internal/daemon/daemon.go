package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/internal/control/server"
	"github.com/usernet/usernet/netstack"
)

// shutdownTime bounds how long switches may take to end.
const shutdownTime = 10 * time.Second

// Daemon owns the networks, their state and the control socket. Make one with
// New, and Run it once.
type Daemon struct {
	cfg     Config
	log     *slog.Logger
	bootID  string
	started time.Time
	store   *store
	fabric  netstack.Fabric // of all networks' switches
	keys    keyLocks
	metrics *metrics

	defining chan struct{}  // see lockDefinitions
	activity chan struct{}  // see poke
	placed   chan struct{}  // see watchPlace
	watchers sync.WaitGroup // link.watch of every link
	bound    sync.WaitGroup // links that end with a connection, and link.abandon
	calm     *time.Timer    // runs out calmTime after the last poke
	stop     chan struct{}  // closed when Run ends serving

	mu             sync.Mutex // guards what follows, and the tables of networks and links
	networks       map[string]*network
	pools          map[string]*pool // by the network's name
	hostKnown      bool
	hostAddrs      []netip.Addr
	hostBroadcasts []netip.Addr
}

var _ server.Handler = (*Daemon)(nil)

// New checks the configuration. It touches nothing outside.
func New(cfg Config) (*Daemon, error) {
	cfg = cfg.withDefaults()
	if cfg.Quarantine < 0 {
		return nil, fmt.Errorf("quarantine %v is negative", cfg.Quarantine)
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("tell this boot from the last: %w", err)
	}
	d := &Daemon{
		cfg: cfg, log: cfg.Log, bootID: strings.TrimSpace(string(bootID)),
		defining: make(chan struct{}, 1), activity: make(chan struct{}, 1), placed: make(chan struct{}, 1), stop: make(chan struct{}),
		networks: map[string]*network{}, pools: map[string]*pool{},
	}
	d.metrics = newMetrics(d)
	d.calm = time.AfterFunc(calmTime, debug.FreeOSMemory)
	return d, nil
}

// Run serves until ctx ends or the daemon has been idle for as long as
// configured; both are a nil error. It then refuses requests, undoes attaches
// that are not committed, and ends the switches: containers lose their network,
// since nothing holds their descriptors beyond this process.
//
// Only one daemon runs on a state directory; Run says which process holds it.
func (d *Daemon) Run(ctx context.Context) (err error) {
	if l := d.cfg.Listener; l != nil {
		defer l.Close() // again, when serving has closed it
	}
	d.started = time.Now().UTC()
	defer d.calm.Stop()
	if err := makeStateDir(d.cfg.StateDir); err != nil {
		return err
	}
	lock, err := lockStateDir(d.cfg.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if d.store, err = openStore(filepath.Join(d.cfg.StateDir, "state.db")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.store.close()) }()
	if err := d.restore(ctx); err != nil {
		return errors.Join(err, d.endSwitches())
	}
	listener, closeListener, err := d.listen()
	if err != nil {
		return errors.Join(err, d.endSwitches())
	}
	if err := d.dropPrivileges(); err != nil {
		return errors.Join(err, closeListener(), d.endSwitches())
	}
	// The socket is there: a DEL that finds no tombstone taken up can ask.
	d.replayTombstones(ctx)
	err = d.serve(ctx, listener)
	close(d.stop)
	// The socket goes first, so that a client finds it missing rather than
	// deaf, and the lock of the state last.
	err = errors.Join(err, closeListener())
	// All connections have ended, and what depended on them is being undone:
	// it must not outlive the daemon as lost links.
	d.bound.Wait()
	err = errors.Join(err, d.endSwitches())
	d.watchers.Wait()
	return err
}

// dropPrivileges does so if configured. Programs that are linked with cgo, as
// go run makes them where there is a C compiler, cannot and say so.
func (d *Daemon) dropPrivileges() error {
	if !d.cfg.DropPrivileges {
		return nil
	}
	err := DropPrivileges(Privileges{KeepNetRaw: NeedsNetRaw()})
	if errors.Is(err, errors.ErrUnsupported) {
		d.log.Warn("privileges are kept", "err", err)
		return nil
	}
	return err
}

// listen returns the control socket, inherited or made.
func (d *Daemon) listen() (*net.UnixListener, func() error, error) {
	if l := d.cfg.Listener; l != nil {
		return l, func() error { return nil }, nil
	}
	l, err := control.Listen(d.cfg.Socket)
	if err != nil {
		return nil, nil, err
	}
	return l.UnixListener, l.Close, nil
}

// serve answers requests and follows the host until ctx ends, serving fails,
// or the daemon is idle.
func (d *Daemon) serve(ctx context.Context, listener *net.UnixListener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer cancel(nil) // before the wait
	helpers.Go(func() { d.followHost(ctx) })
	helpers.Go(func() { d.reapEnded(ctx) })
	if d.cfg.IdleExit > 0 {
		helpers.Go(func() { d.exitWhenIdle(ctx, cancel) })
	}
	done := make(chan error, 1)
	go d.answer(ctx, listener, done)
	// The socket listens since before serve: connections wait in its backlog.
	if err := notify("READY=1\nSTATUS=serving " + d.cfg.Socket); err != nil {
		d.log.Warn("service manager not told that the daemon is ready", "err", err)
	}
	d.log.Info("serving", "socket", d.cfg.Socket, "state", d.cfg.StateDir, "version", d.cfg.Version)
	if d.cfg.Ready != nil {
		d.cfg.Ready()
	}
	err := <-done
	if nerr := notify("STOPPING=1"); nerr != nil {
		d.log.Warn("service manager not told that the daemon stops", "err", nerr)
	}
	d.log.Info("stopping", "cause", context.Cause(ctx), "err", err)
	return err
}

// answer serves the control socket. It ends with ctx; serve waits for it.
func (d *Daemon) answer(ctx context.Context, listener *net.UnixListener, done chan<- error) {
	done <- server.Serve(ctx, listener, server.Config{
		Handler: d, Metrics: d.metrics.handler(), Health: d.healthy, Log: d.log,
	})
}

// healthy is GET /healthz: the daemon answers, and its state can be read.
func (d *Daemon) healthy(context.Context) error {
	_, err := d.store.load()
	return err
}

// stopping reports whether serving has ended.
func (d *Daemon) stopping() bool {
	select {
	case <-d.stop:
		return true
	default:
		return false
	}
}

// endSwitches ends all networks, at once: each may have connections to reset.
func (d *Daemon) endSwitches() error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	list := d.networkList()
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, n := range list {
		wg.Go(func() { errs[i] = n.sw.Shutdown(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// calmTime is how long after links have come or gone the daemon gives back the
// memory that it took for that, once. Go alone would keep most of it: a daemon
// that sleeps does not collect.
const calmTime = 2 * time.Second

// poke tells the idle watch that links have come or gone.
func (d *Daemon) poke() {
	d.calm.Reset(calmTime)
	select {
	case d.activity <- struct{}{}:
	default: // it has been told already
	}
}

// errIdle is why an idle daemon ends.
var errIdle = errors.New("no links for the configured time")

// exitWhenIdle cancels serving once there have been no links for IdleExit. It
// ends with ctx; serve waits for it.
func (d *Daemon) exitWhenIdle(ctx context.Context, cancel context.CancelCauseFunc) {
	timer := time.NewTimer(d.cfg.IdleExit)
	defer timer.Stop()
	for {
		select {
		case <-d.activity:
			timer.Reset(d.cfg.IdleExit)
		case <-timer.C:
			if d.inUse() {
				timer.Reset(d.cfg.IdleExit)
				continue
			}
			cancel(errIdle)
			return
		case <-ctx.Done():
			return
		}
	}
}

// inUse reports whether any link lives or is being made.
func (d *Daemon) inUse() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.networks {
		if len(n.busyLocked()) > 0 {
			return true
		}
	}
	return false
}

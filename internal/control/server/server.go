package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/usernet/usernet/internal/control"
)

// MaxBody is the most bytes of JSON that a request may carry.
const MaxBody = 1 << 20

// drainTime is how long requests under way may go on after Serve's context
// ends.
const drainTime = 5 * time.Second

// Handler does what the routes ask for. Its methods are called concurrently;
// ctx ends when the client goes. An error that holds an [Error] is sent with
// its code, any other as CodeInternal. Requests come decoded but not validated,
// except that link keys and network names in URLs are.
type Handler interface {
	// Attach makes a link that lives until s ends, or until Detach once
	// Commit was called. It owns files, the TUN first, in all cases.
	Attach(ctx context.Context, s *Session, req *control.AttachRequest, files []*os.File) (*control.AttachReply, error)
	Commit(ctx context.Context, key control.LinkKey) error
	Links(ctx context.Context, ref string) ([]control.Link, error)
	Link(ctx context.Context, key control.LinkKey) (*control.Link, error)
	// AmendLink changes what req names and leaves the rest; the reply is the
	// link as it is now.
	AmendLink(ctx context.Context, key control.LinkKey, req *control.AmendLinkRequest) (*control.Link, error)
	// Detach removes the link, and the lease of the same key.
	Detach(ctx context.Context, key control.LinkKey) (removed bool, err error)

	// Acquire makes a lease without a link.
	Acquire(ctx context.Context, req *control.LeaseRequest) (*control.Lease, error)
	// Leases lists those of one network name, or all.
	Leases(ctx context.Context, network string) ([]control.Lease, error)
	Lease(ctx context.Context, key control.LinkKey) (*control.Lease, error)
	Release(ctx context.Context, key control.LinkKey) (released bool, err error)

	Networks(ctx context.Context) ([]control.Network, error)
	Network(ctx context.Context, name string) (*control.Network, error)
	CreateNetwork(ctx context.Context, req *control.CreateNetworkRequest) (*control.Network, error)
	AmendNetwork(ctx context.Context, name string, req *control.AmendNetworkRequest) (*control.Network, error)
	RemoveNetwork(ctx context.Context, name string) error
	// AttachHost owns file in all cases.
	AttachHost(ctx context.Context, network string, req *control.AttachHostRequest, file *os.File) (*control.HostLink, error)
	GC(ctx context.Context, network string, req *control.GCRequest) (*control.GCReply, error)

	Publications(ctx context.Context) ([]control.Publication, error)
	// Publish owns files: the socket with FD set, and then the nf_tables socket
	// with Redirect set.
	Publish(ctx context.Context, req *control.PublishRequest, files []*os.File) (*control.Publication, error)
	// PublishLink owns files: one for each publication with FD set, in order,
	// and then the nf_tables socket when one has Redirect set.
	PublishLink(ctx context.Context, key control.LinkKey, req *control.PublishLinkRequest, files []*os.File) ([]control.Publication, error)
	UnpublishLink(ctx context.Context, key control.LinkKey, req *control.UnpublishLinkRequest) ([]control.Publication, error)
	Unpublish(ctx context.Context, id string) error

	Flows(ctx context.Context, q control.FlowQuery) ([]control.Flow, error)
	Stats(ctx context.Context, network string) (*control.StatsReply, error)
	// Capture writes pcapng to w until ctx ends; each Write reaches the
	// client at once.
	Capture(ctx context.Context, q control.CaptureQuery, w io.Writer) error
	Status(ctx context.Context, network string) (*control.StatusReply, error)
	Version(ctx context.Context) (*control.VersionReply, error)
}

// Config says how to serve.
type Config struct {
	Handler Handler
	Metrics http.Handler                // GET /metrics; nil: not found
	Health  func(context.Context) error // GET /healthz; nil: always healthy
	Log     *slog.Logger                // nil: discarded; requests are logged at debug level
}

// Serve answers requests on l until ctx ends; then it stops accepting, gives
// requests under way a few seconds (their contexts end at once) and closes all
// connections. When it returns no handler runs and every Session has ended. It
// returns nil after such an end and owns l in all cases.
//
// Only peers with the daemon's own effective uid or uid 0 are served.
func Serve(ctx context.Context, l *net.UnixListener, cfg Config) error {
	return serve(ctx, l, cfg, allowUID(os.Geteuid()))
}

func serve(ctx context.Context, l *net.UnixListener, cfg Config, allowed func(uint32) bool) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	a := &api{Config: cfg}
	// Requests must not outlive ctx by more than they need to notice it, and
	// a capture would never end by itself.
	base, cancel := context.WithCancel(ctx)
	defer cancel()
	hs := &http.Server{
		Handler:           a.mux(),
		ReadHeaderTimeout: readHeaderTimeout,
		// No idle timeout: a connection that waits for its commit, or that
		// carries an ephemeral link, is idle on purpose.
		MaxHeaderBytes: 64 << 10,
		BaseContext:    func(net.Listener) context.Context { return base },
		ConnContext:    withConn,
		ErrorLog:       slog.NewLogLogger(cfg.Log.Handler(), slog.LevelWarn),
	}
	// net/http's Close does not wait for handlers; we do, so that the caller
	// may take down what they use.
	var conns sync.WaitGroup
	hs.ConnState = func(_ net.Conn, st http.ConnState) {
		switch st {
		case http.StateNew:
			conns.Add(1)
		case http.StateClosed:
			conns.Done()
		}
	}
	defer conns.Wait()
	done := make(chan error, 1)
	go acceptLoop(hs, &recvListener{UnixListener: l, allowed: allowed}, done)
	select {
	case err := <-done:
		cancel()
		hs.Close()
		return fmt.Errorf("serve control socket: %w", err)
	case <-ctx.Done():
	}
	drain, stop := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer stop()
	if err := hs.Shutdown(drain); err != nil {
		hs.Close()
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve control socket: %w", err)
	}
	return nil
}

// acceptLoop accepts until the server is shut down or closed; serve waits for
// it by done.
func acceptLoop(hs *http.Server, l net.Listener, done chan<- error) { done <- hs.Serve(l) }

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

func connOf(r *http.Request) *recvConn {
	return r.Context().Value(connKey{}).(*recvConn)
}

// api holds what the handlers of the routes share.
type api struct {
	Config
}

func (a *api) mux() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range routes {
		mux.Handle(rt.method+" "+rt.pattern, a.wrap(rt))
	}
	mux.Handle("/", a.wrap(route{serve: noRoute}))
	return mux
}

// wrap does for every request what no route may forget: who asks, in which
// version, errors as JSON, and no descriptor left behind.
func (a *api) wrap(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		c := connOf(r)
		defer c.discard()
		w.Header().Set(control.VersionHeader, strconv.Itoa(control.APIVersion))
		r.Body = http.MaxBytesReader(w, r.Body, MaxBody)
		err := a.admit(c, r)
		if err == nil {
			err = rt.checkQuery(r)
		}
		if err == nil {
			err = rt.serve(a, w, r)
		}
		if err != nil {
			writeError(w, err)
		}
		a.Log.Debug("control request", "method", r.Method, "path", r.URL.Path,
			"pid", c.session.Peer.PID, "took", time.Since(start), "err", err)
	})
}

func (a *api) admit(c *recvConn, r *http.Request) error {
	if !c.allowed {
		if uid := c.session.Peer.UID; uid == overflowUID() {
			return control.Errorf(control.CodeForbidden, "uid %d (nobody) may not use this daemon: users of other user namespaces have it too; run daemon and clients as another user", uid)
		}
		return control.Errorf(control.CodeForbidden, "uid %d may not use this daemon, which serves uid %d and root", c.session.Peer.UID, os.Geteuid())
	}
	if v := r.Header.Get(control.VersionHeader); v != "" && v != strconv.Itoa(control.APIVersion) {
		return control.Errorf(control.CodeVersion, "the client speaks API version %s, this daemon %d; install the same release of both", v, control.APIVersion)
	}
	return nil
}

func noRoute(_ *api, _ http.ResponseWriter, r *http.Request) error {
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if n, err := strconv.Atoi(strings.TrimPrefix(first, "v")); err == nil && strings.HasPrefix(first, "v") && n != control.APIVersion {
		return control.Errorf(control.CodeVersion, "no API version %d here, this daemon speaks version %d", n, control.APIVersion)
	}
	return control.Errorf(control.CodeNotFound, "no route %s %s; GET /v1/openapi.yaml lists them", r.Method, r.URL.Path)
}

var httpStatus = map[control.Code]int{
	control.CodeInvalid:       http.StatusBadRequest,
	control.CodeNotFound:      http.StatusNotFound,
	control.CodeConflict:      http.StatusConflict,
	control.CodeAddressInUse:  http.StatusConflict,
	control.CodeOutOfRange:    http.StatusUnprocessableEntity,
	control.CodeExhausted:     http.StatusConflict,
	control.CodePortInUse:     http.StatusConflict,
	control.CodeNetworkExists: http.StatusConflict,
	control.CodeNetworkInUse:  http.StatusConflict,
	control.CodeDescriptor:    http.StatusUnprocessableEntity,
	control.CodeUnwatched:     http.StatusUnprocessableEntity,
	control.CodeForbidden:     http.StatusForbidden,
	control.CodeUnavailable:   http.StatusServiceUnavailable,
	control.CodeVersion:       http.StatusBadRequest,
	control.CodeTooLarge:      http.StatusRequestEntityTooLarge,
	control.CodeInternal:      http.StatusInternalServerError,
}

func writeError(w http.ResponseWriter, err error) {
	if errors.Is(err, errStreamStarted) {
		// The status is sent; only cutting the connection tells the client.
		panic(http.ErrAbortHandler)
	}
	code := control.CodeOf(err)
	status, ok := httpStatus[code]
	if !ok {
		status = http.StatusInternalServerError
	}
	message := err.Error()
	if errors.Is(err, context.Canceled) && code == control.CodeInternal {
		code, status = control.CodeUnavailable, http.StatusServiceUnavailable
		message = "interrupted: " + message
	}
	writeJSON(w, status, control.ErrorReply{Error: control.Error{Code: code, Message: message}})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status = http.StatusInternalServerError
		b = []byte(`{"error":{"code":"internal","message":"reply could not be encoded"}}`)
	}
	b = append(b, '\n')
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b))) // or HTTP/1.0 could not go on
	w.WriteHeader(status)
	_, _ = w.Write(b) // a client that left does not want it
}

// decode reads the body into v.
func decode(r *http.Request, v any) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return control.Errorf(control.CodeTooLarge, "the body is over %d bytes", tooLarge.Limit)
		}
		return fmt.Errorf("read request body: %w", err)
	}
	return control.DecodeStrict(body, v)
}

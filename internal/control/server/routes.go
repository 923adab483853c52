package server

import (
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/usernet/usernet/internal/control"
)

//go:embed openapi.yaml
var openAPI []byte

// route is one entry of the API; openapi.yaml has the same ones.
type route struct {
	method, pattern string
	request, reply  any      // zero values of the JSON bodies; nil: none
	query           []string // the parameters it knows
	serve           func(*api, http.ResponseWriter, *http.Request) error
}

var routes = []route{
	{"POST", "/v1/links", control.AttachRequest{}, control.AttachReply{}, nil, serveAttach},
	{"GET", "/v1/links", nil, control.LinksReply{}, []string{"ref"}, serveLinks},
	{"GET", "/v1/links/{network}/{container}/{ifname}", nil, control.Link{}, nil, serveLink},
	{"PATCH", "/v1/links/{network}/{container}/{ifname}", control.AmendLinkRequest{}, control.Link{}, nil, serveAmendLink},
	{"DELETE", "/v1/links/{network}/{container}/{ifname}", nil, control.DetachReply{}, nil, serveDetach},
	{"POST", "/v1/links/{network}/{container}/{ifname}/commit", nil, nil, nil, serveCommit},
	{"POST", "/v1/links/{network}/{container}/{ifname}/publications", control.PublishLinkRequest{}, control.PublicationsReply{}, nil, servePublishLink},
	{"POST", "/v1/links/{network}/{container}/{ifname}/unpublish", control.UnpublishLinkRequest{}, control.PublicationsReply{}, nil, serveUnpublishLink},
	{"POST", "/v1/leases", control.LeaseRequest{}, control.Lease{}, nil, serveAcquire},
	{"GET", "/v1/leases", nil, control.LeasesReply{}, []string{"network"}, serveLeases},
	{"GET", "/v1/leases/{network}/{container}/{ifname}", nil, control.Lease{}, nil, serveLease},
	{"DELETE", "/v1/leases/{network}/{container}/{ifname}", nil, control.ReleaseReply{}, nil, serveRelease},
	{"GET", "/v1/networks", nil, control.NetworksReply{}, nil, serveNetworks},
	{"POST", "/v1/networks", control.CreateNetworkRequest{}, control.Network{}, nil, serveCreateNetwork},
	{"GET", "/v1/networks/{name}", nil, control.Network{}, nil, serveNetwork},
	{"PATCH", "/v1/networks/{name}", control.AmendNetworkRequest{}, control.Network{}, nil, serveAmendNetwork},
	{"DELETE", "/v1/networks/{name}", nil, nil, nil, serveRemoveNetwork},
	{"POST", "/v1/networks/{name}/hosts", control.AttachHostRequest{}, control.HostLink{}, nil, serveAttachHost},
	{"POST", "/v1/networks/{name}/gc", control.GCRequest{}, control.GCReply{}, nil, serveGC},
	{"GET", "/v1/publications", nil, control.PublicationsReply{}, nil, servePublications},
	{"POST", "/v1/publications", control.PublishRequest{}, control.Publication{}, nil, servePublish},
	{"DELETE", "/v1/publications/{id}", nil, nil, nil, serveUnpublish},
	{"GET", "/v1/flows", nil, control.FlowsReply{}, []string{"network", "link"}, serveFlows},
	{"GET", "/v1/stats", nil, control.StatsReply{}, []string{"network"}, serveStats},
	{"GET", "/v1/capture", nil, nil, []string{"link", "network", "snaplen"}, serveCapture},
	{"GET", "/v1/status", nil, control.StatusReply{}, []string{"network"}, serveStatus},
	{"GET", "/v1/version", nil, control.VersionReply{}, nil, serveVersion},
	{"GET", "/v1/openapi.yaml", nil, nil, nil, serveOpenAPI},
	{"GET", "/metrics", nil, nil, nil, serveMetrics},
	{"GET", "/healthz", nil, nil, nil, serveHealth},
}

// checkQuery refuses a parameter that the route would ignore.
func (rt *route) checkQuery(r *http.Request) error {
	if rt.pattern == "" {
		return nil
	}
	for name := range r.URL.Query() {
		if !slices.Contains(rt.query, name) {
			return control.Errorf(control.CodeInvalid, "%s %s: unknown query parameter %q; known: %s", rt.method, rt.pattern, name, cmp.Or(strings.Join(rt.query, ", "), "none"))
		}
	}
	return nil
}

// reply sends v, or passes err on.
func reply(w http.ResponseWriter, v any, err error) error {
	if err == nil {
		writeJSON(w, http.StatusOK, v)
	}
	return err
}

// empty sends a reply without body, or passes err on.
func empty(w http.ResponseWriter, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func pathKey(r *http.Request) (control.LinkKey, error) {
	k := control.LinkKey{Network: r.PathValue("network"), Container: r.PathValue("container"), IfName: r.PathValue("ifname")}
	return k, k.Validate()
}

func pathNetwork(r *http.Request) (string, error) {
	name := r.PathValue("name")
	return name, control.ValidateName("network name", name)
}

func serveAttach(a *api, w http.ResponseWriter, r *http.Request) error {
	var req control.AttachRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	c := connOf(r)
	files, err := c.take(1 + descriptors(req.Publications...))
	if err != nil {
		return err
	}
	rep, err := a.Handler.Attach(r.Context(), c.session, &req, files)
	return reply(w, rep, err)
}

// descriptors returns how many descriptors come with publications: a socket
// each, and the owner of the redirects if there are any.
func descriptors(specs ...control.PublicationSpec) int {
	n, redirects := 0, 0
	for _, s := range specs {
		if s.FD {
			n++
		}
		if s.Redirect {
			redirects = 1
		}
	}
	return n + redirects
}

func serveCommit(a *api, w http.ResponseWriter, r *http.Request) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	return empty(w, a.Handler.Commit(r.Context(), key))
}

func serveLinks(a *api, w http.ResponseWriter, r *http.Request) error {
	links, err := a.Handler.Links(r.Context(), r.FormValue("ref"))
	return reply(w, control.LinksReply{Links: orEmpty(links)}, err)
}

func serveLink(a *api, w http.ResponseWriter, r *http.Request) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	l, err := a.Handler.Link(r.Context(), key)
	return reply(w, l, err)
}

func serveAmendLink(a *api, w http.ResponseWriter, r *http.Request) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	var req control.AmendLinkRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	l, err := a.Handler.AmendLink(r.Context(), key, &req)
	return reply(w, l, err)
}

func serveDetach(a *api, w http.ResponseWriter, r *http.Request) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	removed, err := a.Handler.Detach(r.Context(), key)
	return reply(w, control.DetachReply{Removed: removed}, err)
}

func serveAcquire(a *api, w http.ResponseWriter, r *http.Request) error {
	var req control.LeaseRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	l, err := a.Handler.Acquire(r.Context(), &req)
	return reply(w, l, err)
}

func serveLeases(a *api, w http.ResponseWriter, r *http.Request) error {
	list, err := a.Handler.Leases(r.Context(), r.FormValue("network"))
	return reply(w, control.LeasesReply{Leases: orEmpty(list)}, err)
}

func serveLease(a *api, w http.ResponseWriter, r *http.Request) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	l, err := a.Handler.Lease(r.Context(), key)
	return reply(w, l, err)
}

func serveRelease(a *api, w http.ResponseWriter, r *http.Request) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	released, err := a.Handler.Release(r.Context(), key)
	return reply(w, control.ReleaseReply{Released: released}, err)
}

func serveNetworks(a *api, w http.ResponseWriter, r *http.Request) error {
	list, err := a.Handler.Networks(r.Context())
	return reply(w, control.NetworksReply{Networks: orEmpty(list)}, err)
}

func serveCreateNetwork(a *api, w http.ResponseWriter, r *http.Request) error {
	var req control.CreateNetworkRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	n, err := a.Handler.CreateNetwork(r.Context(), &req)
	return reply(w, n, err)
}

func serveNetwork(a *api, w http.ResponseWriter, r *http.Request) error {
	name, err := pathNetwork(r)
	if err != nil {
		return err
	}
	n, err := a.Handler.Network(r.Context(), name)
	return reply(w, n, err)
}

func serveAmendNetwork(a *api, w http.ResponseWriter, r *http.Request) error {
	name, err := pathNetwork(r)
	if err != nil {
		return err
	}
	var req control.AmendNetworkRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	n, err := a.Handler.AmendNetwork(r.Context(), name, &req)
	return reply(w, n, err)
}

func serveRemoveNetwork(a *api, w http.ResponseWriter, r *http.Request) error {
	name, err := pathNetwork(r)
	if err != nil {
		return err
	}
	return empty(w, a.Handler.RemoveNetwork(r.Context(), name))
}

func serveAttachHost(a *api, w http.ResponseWriter, r *http.Request) error {
	name, err := pathNetwork(r)
	if err != nil {
		return err
	}
	var req control.AttachHostRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	files, err := connOf(r).take(1)
	if err != nil {
		return err
	}
	h, err := a.Handler.AttachHost(r.Context(), name, &req, files[0])
	return reply(w, h, err)
}

func serveGC(a *api, w http.ResponseWriter, r *http.Request) error {
	name, err := pathNetwork(r)
	if err != nil {
		return err
	}
	var req control.GCRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	rep, err := a.Handler.GC(r.Context(), name, &req)
	return reply(w, rep, err)
}

func servePublications(a *api, w http.ResponseWriter, r *http.Request) error {
	list, err := a.Handler.Publications(r.Context())
	return reply(w, control.PublicationsReply{Publications: orEmpty(list)}, err)
}

func servePublish(a *api, w http.ResponseWriter, r *http.Request) error {
	var req control.PublishRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	files, err := connOf(r).take(descriptors(req.PublicationSpec))
	if err != nil {
		return err
	}
	p, err := a.Handler.Publish(r.Context(), &req, files)
	return reply(w, p, err)
}

func servePublishLink(a *api, w http.ResponseWriter, r *http.Request) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	var req control.PublishLinkRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	files, err := connOf(r).take(descriptors(req.Publications...))
	if err != nil {
		return err
	}
	list, err := a.Handler.PublishLink(r.Context(), key, &req, files)
	return reply(w, control.PublicationsReply{Publications: orEmpty(list)}, err)
}

func serveUnpublishLink(a *api, w http.ResponseWriter, r *http.Request) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	var req control.UnpublishLinkRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	list, err := a.Handler.UnpublishLink(r.Context(), key, &req)
	return reply(w, control.PublicationsReply{Publications: orEmpty(list)}, err)
}

func serveUnpublish(a *api, w http.ResponseWriter, r *http.Request) error {
	return empty(w, a.Handler.Unpublish(r.Context(), r.PathValue("id")))
}

func serveFlows(a *api, w http.ResponseWriter, r *http.Request) error {
	list, err := a.Handler.Flows(r.Context(), control.FlowQuery{Network: r.FormValue("network"), Link: r.FormValue("link")})
	return reply(w, control.FlowsReply{Flows: orEmpty(list)}, err)
}

func serveStats(a *api, w http.ResponseWriter, r *http.Request) error {
	s, err := a.Handler.Stats(r.Context(), r.FormValue("network"))
	return reply(w, s, err)
}

func serveStatus(a *api, w http.ResponseWriter, r *http.Request) error {
	s, err := a.Handler.Status(r.Context(), r.FormValue("network"))
	return reply(w, s, err)
}

func serveVersion(a *api, w http.ResponseWriter, r *http.Request) error {
	v, err := a.Handler.Version(r.Context())
	return reply(w, v, err)
}

// errStreamStarted marks a failure after the first byte of a stream.
var errStreamStarted = errors.New("stream broken")

func serveCapture(a *api, w http.ResponseWriter, r *http.Request) error {
	q := control.CaptureQuery{Link: r.FormValue("link"), Network: r.FormValue("network")}
	if s := r.FormValue("snaplen"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return control.Errorf(control.CodeInvalid, "snaplen %q: want a number of bytes, 0 for whole packets", s)
		}
		q.SnapLen = n
	}
	stream := &streamWriter{w: w, flush: http.NewResponseController(w).Flush}
	err := a.Handler.Capture(r.Context(), q, stream)
	if err != nil && stream.begun && r.Context().Err() == nil {
		return fmt.Errorf("%w: %w", errStreamStarted, err)
	}
	if stream.begun {
		return nil
	}
	return err
}

// streamWriter sends each write to the client at once.
type streamWriter struct {
	w     io.Writer
	flush func() error
	begun bool
}

func (s *streamWriter) Write(b []byte) (int, error) {
	if !s.begun {
		s.begun = true
		s.w.(http.ResponseWriter).Header().Set("Content-Type", "application/x-pcapng")
	}
	n, err := s.w.Write(b)
	if err == nil {
		err = s.flush()
	}
	return n, err
}

func serveOpenAPI(_ *api, w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(openAPI) // a client that left does not want it
	return nil
}

func serveMetrics(a *api, w http.ResponseWriter, r *http.Request) error {
	if a.Metrics == nil {
		return control.Errorf(control.CodeNotFound, "this daemon keeps no metrics")
	}
	a.Metrics.ServeHTTP(w, r)
	return nil
}

func serveHealth(a *api, w http.ResponseWriter, r *http.Request) error {
	if a.Health != nil {
		if err := a.Health(r.Context()); err != nil {
			return control.Errorf(control.CodeUnavailable, "%v", err)
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "ok\n")
	return nil
}

// orEmpty makes a nil list an empty one, which JSON writes as [] and not null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

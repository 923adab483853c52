package control

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
	{"POST", "/v1/links", AttachRequest{}, AttachReply{}, nil, serveAttach},
	{"GET", "/v1/links", nil, LinksReply{}, []string{"ref"}, serveLinks},
	{"GET", "/v1/links/{network}/{container}/{ifname}", nil, Link{}, nil, serveLink},
	{"PATCH", "/v1/links/{network}/{container}/{ifname}", AmendLinkRequest{}, Link{}, nil, serveAmendLink},
	{"DELETE", "/v1/links/{network}/{container}/{ifname}", nil, DetachReply{}, nil, serveDetach},
	{"POST", "/v1/links/{network}/{container}/{ifname}/commit", nil, nil, nil, serveCommit},
	{"POST", "/v1/links/{network}/{container}/{ifname}/publications", PublishLinkRequest{}, PublicationsReply{}, nil, servePublishLink},
	{"POST", "/v1/links/{network}/{container}/{ifname}/unpublish", UnpublishLinkRequest{}, PublicationsReply{}, nil, serveUnpublishLink},
	{"POST", "/v1/leases", LeaseRequest{}, Lease{}, nil, serveAcquire},
	{"GET", "/v1/leases", nil, LeasesReply{}, []string{"network"}, serveLeases},
	{"GET", "/v1/leases/{network}/{container}/{ifname}", nil, Lease{}, nil, serveLease},
	{"DELETE", "/v1/leases/{network}/{container}/{ifname}", nil, ReleaseReply{}, nil, serveRelease},
	{"GET", "/v1/networks", nil, NetworksReply{}, nil, serveNetworks},
	{"POST", "/v1/networks", CreateNetworkRequest{}, Network{}, nil, serveCreateNetwork},
	{"GET", "/v1/networks/{name}", nil, Network{}, nil, serveNetwork},
	{"PATCH", "/v1/networks/{name}", AmendNetworkRequest{}, Network{}, nil, serveAmendNetwork},
	{"DELETE", "/v1/networks/{name}", nil, nil, nil, serveRemoveNetwork},
	{"POST", "/v1/networks/{name}/hosts", AttachHostRequest{}, HostLink{}, nil, serveAttachHost},
	{"POST", "/v1/networks/{name}/gc", GCRequest{}, GCReply{}, nil, serveGC},
	{"GET", "/v1/publications", nil, PublicationsReply{}, nil, servePublications},
	{"POST", "/v1/publications", PublishRequest{}, Publication{}, nil, servePublish},
	{"DELETE", "/v1/publications/{id}", nil, nil, nil, serveUnpublish},
	{"GET", "/v1/flows", nil, FlowsReply{}, []string{"network", "link"}, serveFlows},
	{"GET", "/v1/stats", nil, StatsReply{}, []string{"network"}, serveStats},
	{"GET", "/v1/capture", nil, nil, []string{"link", "network", "snaplen"}, serveCapture},
	{"GET", "/v1/status", nil, StatusReply{}, []string{"network"}, serveStatus},
	{"GET", "/v1/version", nil, VersionReply{}, nil, serveVersion},
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
			return Errorf(CodeInvalid, "%s %s: unknown query parameter %q; known: %s", rt.method, rt.pattern, name, cmp.Or(strings.Join(rt.query, ", "), "none"))
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

func pathKey(r *http.Request) (LinkKey, error) {
	k := LinkKey{Network: r.PathValue("network"), Container: r.PathValue("container"), IfName: r.PathValue("ifname")}
	return k, k.Validate()
}

func pathNetwork(r *http.Request) (string, error) {
	name := r.PathValue("name")
	return name, ValidateName("network name", name)
}

func serveAttach(a *api, w http.ResponseWriter, r *http.Request) error {
	var req AttachRequest
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
func descriptors(specs ...PublicationSpec) int {
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
	return reply(w, LinksReply{Links: orEmpty(links)}, err)
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
	var req AmendLinkRequest
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
	return reply(w, DetachReply{Removed: removed}, err)
}

func serveAcquire(a *api, w http.ResponseWriter, r *http.Request) error {
	var req LeaseRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	l, err := a.Handler.Acquire(r.Context(), &req)
	return reply(w, l, err)
}

func serveLeases(a *api, w http.ResponseWriter, r *http.Request) error {
	list, err := a.Handler.Leases(r.Context(), r.FormValue("network"))
	return reply(w, LeasesReply{Leases: orEmpty(list)}, err)
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
	return reply(w, ReleaseReply{Released: released}, err)
}

func serveNetworks(a *api, w http.ResponseWriter, r *http.Request) error {
	list, err := a.Handler.Networks(r.Context())
	return reply(w, NetworksReply{Networks: orEmpty(list)}, err)
}

func serveCreateNetwork(a *api, w http.ResponseWriter, r *http.Request) error {
	var req CreateNetworkRequest
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
	var req AmendNetworkRequest
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
	var req AttachHostRequest
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
	var req GCRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	rep, err := a.Handler.GC(r.Context(), name, &req)
	return reply(w, rep, err)
}

func servePublications(a *api, w http.ResponseWriter, r *http.Request) error {
	list, err := a.Handler.Publications(r.Context())
	return reply(w, PublicationsReply{Publications: orEmpty(list)}, err)
}

func servePublish(a *api, w http.ResponseWriter, r *http.Request) error {
	var req PublishRequest
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
	var req PublishLinkRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	files, err := connOf(r).take(descriptors(req.Publications...))
	if err != nil {
		return err
	}
	list, err := a.Handler.PublishLink(r.Context(), key, &req, files)
	return reply(w, PublicationsReply{Publications: orEmpty(list)}, err)
}

func serveUnpublishLink(a *api, w http.ResponseWriter, r *http.Request) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	var req UnpublishLinkRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	list, err := a.Handler.UnpublishLink(r.Context(), key, &req)
	return reply(w, PublicationsReply{Publications: orEmpty(list)}, err)
}

func serveUnpublish(a *api, w http.ResponseWriter, r *http.Request) error {
	return empty(w, a.Handler.Unpublish(r.Context(), r.PathValue("id")))
}

func serveFlows(a *api, w http.ResponseWriter, r *http.Request) error {
	list, err := a.Handler.Flows(r.Context(), FlowQuery{Network: r.FormValue("network"), Link: r.FormValue("link")})
	return reply(w, FlowsReply{Flows: orEmpty(list)}, err)
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
	q := CaptureQuery{Link: r.FormValue("link"), Network: r.FormValue("network")}
	if s := r.FormValue("snaplen"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return Errorf(CodeInvalid, "snaplen %q: want a number of bytes, 0 for whole packets", s)
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
		return Errorf(CodeNotFound, "this daemon keeps no metrics")
	}
	a.Metrics.ServeHTTP(w, r)
	return nil
}

func serveHealth(a *api, w http.ResponseWriter, r *http.Request) error {
	if a.Health != nil {
		if err := a.Health(r.Context()); err != nil {
			return Errorf(CodeUnavailable, "%v", err)
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

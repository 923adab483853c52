package dns

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ResolvConf is what resolv.conf(5) says about the resolvers of the host.
type ResolvConf struct {
	Servers  []netip.AddrPort // port 53; 127.0.0.1 when the file names none, as in glibc
	Search   []string         // search list, or the one name of "domain"; the last line counts
	Ndots    int              // options ndots; 1 unless given, at most 15
	Timeout  time.Duration    // options timeout, at most 30 s; zero: not given
	Attempts int              // options attempts, rounds over all servers; 2 unless given, at most 5
	Rotate   bool             // options rotate: begin with another server each time
	UseTCP   bool             // options use-vc: never ask over UDP
}

// maxResolvConf bounds how much of a resolv.conf is read; real ones are a few
// hundred bytes.
const maxResolvConf = 64 << 10

// maxServers bounds how many resolvers are kept. glibc stops at three
// (MAXNS), which is too few where both a VPN and a LAN announce their own.
const maxServers = 8

// ParseResolvConf reads the format of resolv.conf(5). Like the C library it
// takes what it understands and passes over the rest, so the only error is that
// of r.
func ParseResolvConf(r io.Reader) (ResolvConf, error) {
	c := ResolvConf{Ndots: 1, Attempts: 2}
	lines := bufio.NewScanner(io.LimitReader(r, maxResolvConf))
	lines.Buffer(make([]byte, 0, 4096), maxResolvConf)
	for lines.Scan() {
		line := lines.Text()
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil && len(c.Servers) < maxServers {
				c.Servers = append(c.Servers, netip.AddrPortFrom(a.Unmap(), 53))
			}
		case "domain":
			c.Search = []string{f[1]}
		case "search":
			c.Search = append([]string(nil), f[1:]...)
		case "options":
			for _, o := range f[1:] {
				c.option(o)
			}
		}
	}
	if len(c.Servers) == 0 {
		c.Servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}
	}
	return c, lines.Err()
}

// option applies one word of an options line. The ceilings are those of
// resolv.conf(5).
func (c *ResolvConf) option(word string) {
	name, value, _ := strings.Cut(word, ":")
	n, err := strconv.Atoi(value)
	number := err == nil && n >= 0
	switch {
	case name == "rotate":
		c.Rotate = true
	case name == "use-vc", name == "usevc", name == "tcp":
		c.UseTCP = true
	case name == "ndots" && number:
		c.Ndots = min(n, 15)
	case name == "timeout" && number && n > 0:
		c.Timeout = time.Duration(min(n, 30)) * time.Second
	case name == "attempts" && number && n > 0:
		c.Attempts = min(n, 5)
	}
}

// recheck is how long a look at resolv.conf stays good: a stat for every query
// would be the dearest part of a cache hit.
const recheck = time.Second

// upstreamList is one state of the resolvers. Immutable; generation grows by one
// with each change and keys the cache.
type upstreamList struct {
	ResolvConf
	generation uint64
	file       fileID
}

// fileID tells whether a file is still the one that was read; a rename over it
// changes the inode, an edit in place the rest.
type fileID struct {
	dev, inode uint64
	size       int64
	mtime      time.Time
}

// hostResolvers follows resolv.conf without a watcher.
type hostResolvers struct {
	path    string // empty: the list is fixed
	list    atomic.Pointer[upstreamList]
	checked atomic.Int64 // when path was last looked at, Unix nanoseconds

	mu sync.Mutex
	// silent holds until when a server that did not answer is asked last.
	silent map[netip.AddrPort]time.Time
	next   int // first server of the next query, for "rotate"
}

func newHostResolvers(cfg Config, now time.Time) *hostResolvers {
	h := &hostResolvers{silent: make(map[netip.AddrPort]time.Time)}
	if len(cfg.Upstream) > 0 {
		h.list.Store(&upstreamList{ResolvConf: ResolvConf{Servers: cfg.Upstream, Attempts: 2, Ndots: 1}})
		return h
	}
	h.path = cfg.ResolvConf
	empty, _ := ParseResolvConf(strings.NewReader("")) // the C library's answer to a missing file
	h.list.Store(&upstreamList{ResolvConf: empty})
	h.checked.Store(now.UnixNano())
	h.reload()
	return h
}

// current returns the resolvers as of at most a second ago. One of concurrent
// callers looks at the file; the others go on with what is known.
func (h *hostResolvers) current(now time.Time) *upstreamList {
	if h.path != "" {
		last := h.checked.Load()
		if age := now.UnixNano() - last; (age >= int64(recheck) || age < 0) && h.checked.CompareAndSwap(last, now.UnixNano()) {
			h.reload()
		}
	}
	return h.list.Load()
}

// reload reads the file when it is not the one known. A file that cannot be read
// (it is being replaced, or gone for a moment) leaves the last list in force.
func (h *hostResolvers) reload() {
	old := h.list.Load()
	id, err := statFile(h.path)
	if err != nil || id == old.file {
		return
	}
	conf, err := readResolvConf(h.path)
	if err != nil {
		return
	}
	h.list.Store(&upstreamList{ResolvConf: conf, generation: old.generation + 1, file: id})
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.silent)
}

// order returns the servers in the order to ask them now: silent ones last.
func (h *hostResolvers) order(list *upstreamList, now time.Time) []netip.AddrPort {
	h.mu.Lock()
	defer h.mu.Unlock()
	first := 0
	if list.Rotate {
		first = h.next % len(list.Servers)
		h.next = first + 1
	}
	var good, silent []netip.AddrPort
	for i := range list.Servers {
		s := list.Servers[(first+i)%len(list.Servers)]
		if now.Before(h.silent[s]) {
			silent = append(silent, s)
		} else {
			good = append(good, s)
		}
	}
	return append(good, silent...)
}

// silence is how long a server that did not answer is asked last.
const silence = 30 * time.Second

func (h *hostResolvers) setSilent(server netip.AddrPort, until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.silent[server] = until
}

func (h *hostResolvers) setAlive(server netip.AddrPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.silent, server)
}

// ReadResolvConf reads the file at path; empty means /etc/resolv.conf.
func ReadResolvConf(path string) (ResolvConf, error) {
	if path == "" {
		path = defaultResolvConf
	}
	return readResolvConf(path)
}

func readResolvConf(path string) (ResolvConf, error) {
	f, err := os.Open(path)
	if err != nil {
		return ResolvConf{}, fmt.Errorf("read the host's resolvers: %w", err)
	}
	defer f.Close()
	conf, err := ParseResolvConf(f)
	if err != nil {
		return ResolvConf{}, fmt.Errorf("read the host's resolvers from %s: %w", path, err)
	}
	return conf, nil
}

func statFile(path string) (fileID, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return fileID{}, err
	}
	id := fileID{size: fi.Size(), mtime: fi.ModTime()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		id.dev, id.inode = st.Dev, st.Ino
	}
	return id, nil
}

package daemon

import (
	"net/http"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/netstack"
)

// metrics reads the daemon's counters when it is scraped; nothing is counted
// twice. Labels are of low cardinality: networks, never links.
type metrics struct {
	d        *Daemon
	registry *prometheus.Registry
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("usernet_"+name, help, labels, nil)
}

var (
	descBuild        = desc("build_info", "1, labelled with what the daemon is.", "version", "goversion")
	descNetworks     = desc("networks", "Networks.")
	descLinks        = desc("links", "Links by state.", "network", "state")
	descPublications = desc("publications", "Host listeners that lead to links.", "network")
	descFlows        = desc("flows", "Flows that are open.", "network")
	descPackets      = desc("forward_packets_total", "Packets moved between containers and the switch; a superframe is one.", "network", "direction")
	descBytes        = desc("forward_bytes_total", "Bytes of the IP packets moved.", "network", "direction")
	descDrops        = desc("drop_packets_total", "Packets that went no further, by the one reason.", "network", "reason")
	descHosts        = desc("host_links", "Interfaces by which namespaces of the host's reach a network.", "network")
	descHostPackets  = desc("host_packets_total", "Packets moved between the host and the switch by these interfaces, since they were made; those that containers get or send are part of forward_packets_total.", "network", "direction")
	descHostBytes    = desc("host_bytes_total", "Bytes of these packets.", "network", "direction")
	descLimits       = desc("limit_drops_total", "Packets and flows refused because a link was over a limit; part of drop_packets_total.", "network", "resource")
	descDNS          = desc("dns_queries_total", "DNS queries of containers by what became of them; forwarded counts exchanges with the host's resolvers.", "network", "outcome")
	descAddresses    = desc("ipam_addresses", "Addresses of a network's ranges by state.", "network", "state")
	descFiles        = desc("open_fds", "Descriptors in use.")
	descFileLimit    = desc("max_fds", "Descriptors that may be in use.")
)

// limitReasons maps the drop reasons that are limits to what was limited.
var limitReasons = map[string]string{
	"flow_rate": "new_flows", "flow_limit": "flows", "dial_limit": "dials", "reassembly": "fragments",
	"dns_limit": "dns", "device_full": "device_queue",
	"bandwidth": "bandwidth",
}

func newMetrics(d *Daemon) *metrics {
	m := &metrics{d: d, registry: prometheus.NewRegistry()}
	m.registry.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descBuild, descNetworks, descLinks, descPublications, descFlows, descPackets, descBytes, descDrops,
		descHosts, descHostPackets, descHostBytes, descLimits, descDNS, descAddresses, descFiles, descFileLimit,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descBuild, 1, m.d.cfg.Version, runtime.Version())
	if open, limit, err := fileUsage(); err == nil {
		gauge(descFiles, float64(open))
		gauge(descFileLimit, float64(limit))
	}
	states := m.d.linkStates()
	networks := m.d.networkList()
	gauge(descNetworks, float64(len(networks)))
	for _, n := range networks {
		for _, state := range []control.LinkState{control.LinkAttaching, control.LinkAttached, control.LinkLost} {
			gauge(descLinks, float64(states[n][state]), n.rec.Name, string(state))
		}
		m.collectSwitch(ch, n)
	}
	for _, p := range m.d.poolList() {
		usage, _ := p.usage()
		gauge(descAddresses, float64(usage.Leased), p.name, "leased")
		gauge(descAddresses, float64(usage.Quarantined), p.name, "quarantined")
		gauge(descAddresses, float64(usage.Free), p.name, "free")
	}
}

func (m *metrics) collectSwitch(ch chan<- prometheus.Metric, n *network) {
	name, st := n.rec.Name, n.sw.Stats()
	counter := func(d *prometheus.Desc, v uint64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), name, label)
	}
	ch <- prometheus.MustNewConstMetric(descFlows, prometheus.GaugeValue, float64(st.Flows), name)
	ch <- prometheus.MustNewConstMetric(descPublications, prometheus.GaugeValue, float64(st.Publications), name)
	counter(descPackets, st.FromContainer.Packets, "fromContainer")
	counter(descPackets, st.ToContainer.Packets, "toContainer")
	counter(descBytes, st.FromContainer.Bytes, "fromContainer")
	counter(descBytes, st.ToContainer.Bytes, "toContainer")
	m.collectHosts(ch, n)
	for reason, v := range st.Drops {
		counter(descDrops, v, reason)
	}
	for reason, resource := range limitReasons {
		counter(descLimits, st.Drops[reason], resource)
	}
	for outcome, n := range map[string]uint64{
		"local": st.DNS.Local, "cached": st.DNS.Cached, "forwarded": st.DNS.Forwarded,
		"refused": st.DNS.Refused, "failed": st.DNS.Failed,
	} {
		counter(descDNS, n, outcome)
	}
}

// collectHosts tells of a network's host links together; their drops are among
// the switch's.
func (m *metrics) collectHosts(ch chan<- prometheus.Metric, n *network) {
	hosts := n.sw.HostLinks()
	ch <- prometheus.MustNewConstMetric(descHosts, prometheus.GaugeValue, float64(len(hosts)), n.rec.Name)
	var from, to netstack.Traffic
	for _, l := range hosts {
		st := l.Stats() // a host link's "container" is the host
		from.Packets, from.Bytes = from.Packets+st.FromContainer.Packets, from.Bytes+st.FromContainer.Bytes
		to.Packets, to.Bytes = to.Packets+st.ToContainer.Packets, to.Bytes+st.ToContainer.Bytes
	}
	for direction, t := range map[string]netstack.Traffic{"fromHost": from, "toHost": to} {
		ch <- prometheus.MustNewConstMetric(descHostPackets, prometheus.CounterValue, float64(t.Packets), n.rec.Name, direction)
		ch <- prometheus.MustNewConstMetric(descHostBytes, prometheus.CounterValue, float64(t.Bytes), n.rec.Name, direction)
	}
}

// linkStates counts the links of each network by state.
func (d *Daemon) linkStates() map[*network]map[control.LinkState]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	states := map[*network]map[control.LinkState]int{}
	for _, n := range d.networks {
		states[n] = map[control.LinkState]int{}
		for _, l := range n.links {
			states[n][l.state]++
		}
	}
	return states
}

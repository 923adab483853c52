package main

import (
	"image/color"
	"regexp"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
)

// chart is a picture of some figures that share a unit.
type chart struct {
	file, title string
	figures     *regexp.Regexp
}

var charts = []chart{
	{"egress4", "TCP to and from the outside over IPv4, Gbit/s (longer is better)", regexp.MustCompile(`^egress-tcp4-[^/]*$`)},
	{"egress6", "TCP to and from the outside over IPv6, Gbit/s (longer is better)", regexp.MustCompile(`^egress-tcp6-[^/]*$`)},
	{"streams", "TCP between containers and by a published port, Gbit/s (longer is better)", regexp.MustCompile(`^(peer|published)-[^/]*$`)},
	{"udp", "Datagrams that arrive, Gbit/s (longer is better)", regexp.MustCompile(`^(egress-udp4-up/(at-1%-lost|flood-received)|datagrams/.*)$`)},
	{"latency", "Round trip, µs (shorter is better)", regexp.MustCompile(`^(tcp|udp)-rr/`)},
	{"connections", "Connections and queries a second (longer is better)", regexp.MustCompile(`^(crr-.*|dns)$`)},
	{"growth-throughput", "TCP beside idle containers, Gbit/s (longer is better)", regexp.MustCompile(`^growth/\d+-up$`)},
	{"growth-latency", "TCP round trip beside idle containers, µs (shorter is better)", regexp.MustCompile(`^growth/\d+-rr`)},
}

// plot draws every chart that the report has figures for.
func (r *Report) plot(path string) error {
	for _, c := range charts {
		var names []string
		for _, name := range r.names() {
			if c.figures.MatchString(name) {
				names = append(names, name)
			}
		}
		if len(names) == 0 {
			continue
		}
		if err := r.draw(c, names, path+"-"+c.file+".png"); err != nil {
			return err
		}
	}
	return nil
}

// draw makes a group of bars for each scenario, one bar for each backend.
func (r *Report) draw(c chart, names []string, file string) error {
	slices.Reverse(names) // the first on top
	p := newPlot(c.title)
	var shown []string
	for _, b := range backends("", "") {
		if slices.ContainsFunc(names, func(n string) bool { row := r.find(n, b.Name()); return row != nil && len(row.Samples) > 0 }) {
			shown = append(shown, b.Name())
		}
	}
	const thick = 7 // points a bar
	for i, backend := range shown {
		values := make(plotter.Values, len(names))
		for j, name := range names {
			if row := r.find(name, backend); row != nil {
				values[j] = row.Median
			}
		}
		bars, err := plotter.NewBarChart(values, vg.Points(thick))
		if err != nil {
			return err
		}
		bars.Horizontal, bars.LineStyle.Width = true, 0
		bars.Color = colourOf(backend)
		bars.Offset = vg.Points((float64(len(shown)-1)/2 - float64(i)) * thick)
		p.Add(bars)
		p.Legend.Add(backend, bars)
	}
	p.NominalY(names...)
	p.Y.Min, p.Y.Max = -0.6, float64(len(names))-0.4 // whole groups at both ends
	p.X.Max *= 1.4                                   // room for the legend
	height := vg.Points(80 + float64(len(names)*(len(shown)+2)*thick))
	return p.Save(24*vg.Centimeter, height, file)
}

// newPlot returns an empty plot in a type that is without serifs; PNG has its letters drawn, where SVG would depend on the fonts of who looks.
func newPlot(title string) *plot.Plot {
	p := plot.New()
	p.Title.Text = title
	p.X.Min = 0
	p.Title.Padding = vg.Points(6)
	p.Y.Label.Text = " " // a margin, without which long names are cut
	p.Legend.Top = true
	for style, size := range map[*text.Style]vg.Length{
		&p.Title.TextStyle: 11, &p.X.Tick.Label: 9, &p.Y.Tick.Label: 9, &p.Legend.TextStyle: 9,
	} {
		style.Font.Variant, style.Font.Size = "Sans", size
	}
	p.Add(plotter.NewGrid())
	return p
}

// colourOf makes usernet stand out among its peers, each of which has its own
// colour in all charts.
func colourOf(backend string) color.Color {
	switch backend {
	case "usernet":
		return color.RGBA{R: 0x1f, G: 0x5f, B: 0xbf, A: 0xff}
	case "usernet-run":
		return color.RGBA{R: 0x7f, G: 0xab, B: 0xe6, A: 0xff}
	case "bridge":
		return color.Gray{Y: 0x50}
	}
	i := slices.IndexFunc(backends("", ""), func(b Backend) bool { return b.Name() == backend })
	return plotutil.SoftColors[i%len(plotutil.SoftColors)]
}

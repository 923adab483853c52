package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// printJSON prints v for programs.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// Colours, by their ANSI codes.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
	bold   = "1"
	faint  = "2"
)

// painter colours text when its output is a terminal that wants it.
type painter bool

// painter judges w: colours need a terminal, and NO_COLOR (no-color.org) or
// TERM=dumb forbid them.
func (a *app) painter(w io.Writer) painter {
	f, ok := w.(*os.File)
	return painter(ok && term.IsTerminal(int(f.Fd())) && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb")
}

func (p painter) paint(colour, text string) string {
	if !p || colour == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// table is a listing for people. Columns are as wide as they need to be.
type table struct {
	head []string
	rows [][]string
	// colour, if not nil, chooses a colour for a cell.
	colour func(column int, text string) string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer, p painter) {
	widths := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	t.line(w, widths, t.head, func(_ int, s string) string { return p.paint(bold, s) })
	for _, row := range t.rows {
		t.line(w, widths, row, func(i int, s string) string {
			if t.colour == nil {
				return s
			}
			return p.paint(t.colour(i, strings.TrimSpace(s)), s)
		})
	}
}

func (t *table) line(w io.Writer, widths []int, cells []string, paint func(int, string) string) {
	var b strings.Builder
	for i, cell := range cells {
		if cell == "" {
			cell = "-"
		}
		text := cell
		if i < len(cells)-1 {
			text += strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2)
		}
		b.WriteString(paint(i, text))
	}
	fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
}

// size writes a number of bytes for people.
func size(n uint64) string {
	switch {
	case n < 1000:
		return fmt.Sprintf("%d B", n)
	case n < 1000_000:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	case n < 1000_000_000:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

// age writes how long ago t was.
func age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// list writes things divided by commas.
func list[T fmt.Stringer](things []T) string {
	texts := make([]string, len(things))
	for i, t := range things {
		texts[i] = t.String()
	}
	return strings.Join(texts, ",")
}

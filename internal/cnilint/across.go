package cnilint

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
)

// across judges what files do to each other.
func (j *judge) across(lists []*list) {
	j.names(lists)
	j.overlaps(lists)
	j.order(lists)
}

// names finds networks of one name.
func (j *judge) names(lists []*list) {
	byName := make(map[string]*list)
	for _, l := range lists {
		first, taken := byName[l.name]
		if !taken {
			byName[l.name] = l
			continue
		}
		if l.name == "" || j.first(l) == nil && j.first(first) == nil {
			continue
		}
		j.about(l, Warning, "name", "name",
			fmt.Sprintf("%s has the name %q too: podman uses one of the files and ignores the other, and both share one switch", first.path, l.name),
			"give one of them another name, or delete one")
	}
}

// overlaps finds networks that share addresses, if usernet serves one of them;
// one finding for each pair.
func (j *judge) overlaps(lists []*list) {
	for i, second := range lists {
		for _, first := range lists[:i] {
			if first.name != second.name {
				j.overlap(first, second)
			}
		}
	}
}

// overlap tells the first overlap of two networks, at the second.
func (j *judge) overlap(first, second *list) {
	for _, p := range second.plugins {
		for _, q := range first.plugins {
			mine, theirs, shared := sharedSubnet(p.ipam, q.ipam)
			if !shared || !j.connects(p) && !j.connects(q) {
				continue
			}
			where := fmt.Sprintf("%s overlaps %s of network %s (%s)", mine, theirs, first.name, first.path)
			const fix = "choose another subnet for one of them"
			if j.connects(p) && j.connects(q) && p.socket() == q.socket() {
				j.at(p, Error, "overlap", "ipam", "ADD fails on the network that comes second: "+where+", and one daemon serves both", fix)
			} else {
				j.at(p, Warning, "overlap", "ipam", where+": a container on one of them cannot reach the addresses of the other, and one on both has two routes to them", fix)
			}
			return
		}
	}
}

// sharedSubnet returns the first subnets of two plugins that overlap.
func sharedSubnet(a, b ipam) (mine, theirs netip.Prefix, ok bool) {
	for _, x := range a.subnets() {
		for _, y := range b.subnets() {
			if x.Overlaps(y) {
				return x, y, true
			}
		}
	}
	return mine, theirs, false
}

// order finds directories whose first file is not usernet's.
func (j *judge) order(lists []*list) {
	byDir := make(map[string][]*list)
	var dirs []string
	for _, l := range lists {
		if l.dir == "" {
			continue
		}
		if byDir[l.dir] == nil {
			dirs = append(dirs, l.dir)
		}
		byDir[l.dir] = append(byDir[l.dir], l)
	}
	for _, dir := range dirs {
		files := slices.SortedFunc(slices.Values(byDir[dir]), func(a, b *list) int { return cmp.Compare(a.path, b.path) })
		ours := slices.IndexFunc(files, func(l *list) bool { return j.first(l) != nil })
		switch {
		case ours < 0:
			j.found = append(j.found, Finding{Severity: Warning, Check: "order", File: dir,
				What: "no configuration of usernet is in the directory", Fix: "usernet cni install --conf-dir " + dir})
		case ours > 0:
			first, l := files[0], files[ours]
			base := filepath.Base(l.path)
			fix := fmt.Sprintf("mv %s %s", l.path, filepath.Join(dir, "00-"+base))
			if "00-"+base >= filepath.Base(first.path) {
				fix = fmt.Sprintf("rename %s so that it sorts before %s", l.path, filepath.Base(first.path))
			}
			j.about(l, Warning, "order", "", fmt.Sprintf("containerd's CRI and CRI-O take the first file of the directory, which is %s: pods are not on usernet; podman and nerdctl choose by name", first.path), fix)
		}
	}
}

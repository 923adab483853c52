package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// mergeFiles makes one result of the pieces of a run that was too long to be
// made at once.
func mergeFiles(out string, paths []string) error {
	merged, err := readReport(paths[0])
	if err != nil {
		return err
	}
	for _, path := range paths {
		piece, err := readReport(path)
		if err != nil {
			return err
		}
		if !piece.Complete {
			return fmt.Errorf("%s: %w", path, errIncomplete)
		}
		if err := piece.sameConditions(merged); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if path != paths[0] {
			if err := merged.merge(piece); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	merged.finish(true)
	return merged.write(trimJSON(out))
}

// sameConditions says what keeps two results from being pieces of one run.
func (r *Report) sameConditions(other *Report) error {
	if err := r.sameMachine(other); err != nil {
		return err
	}
	switch {
	case r.Commit != other.Commit:
		return fmt.Errorf("of commit %s, the first piece of %s", r.Commit, other.Commit)
	case r.Go != other.Go || r.Seconds != other.Seconds:
		return fmt.Errorf("with %s and loads of %g s, the first piece with %s and %g s", r.Go, r.Seconds, other.Go, other.Seconds)
	}
	for name, version := range r.Versions {
		if first, ok := other.Versions[name]; ok && first != version {
			return fmt.Errorf("%s is %s, in the first piece %s", name, version, first)
		}
	}
	return nil
}

// merge adds the samples of a piece. A scenario that both have is one more
// round of it, and has to have met the same backends: a backend alone on the
// machine at another time would be compared with those of this time.
func (r *Report) merge(piece *Report) error {
	for _, name := range piece.names() {
		mine, theirs := r.backendsOf(name), piece.backendsOf(name)
		if len(mine) > 0 && !slices.Equal(mine, theirs) {
			return fmt.Errorf("%s is of %v, in the pieces before of %v", name, theirs, mine)
		}
	}
	for _, row := range piece.Rows {
		into := r.row(row.Scenario, row.Backend, Figure{Unit: row.Unit, HigherIsBetter: row.HigherIsBetter})
		into.Samples = append(into.Samples, row.Samples...)
		into.Errors = append(into.Errors, row.Errors...)
		if !measuredOnce(row.Scenario) {
			r.Rounds = max(r.Rounds, len(into.Samples)+len(into.Errors))
		}
	}
	maps.Copy(r.Versions, piece.Versions)
	maps.Copy(r.MTU, piece.MTU)
	if piece.Date.Before(r.Date) {
		r.Date = piece.Date
	}
	return nil
}

// backendsOf are the backends that a scenario was driven through, sorted.
func (r *Report) backendsOf(scenario string) []string {
	var names []string
	for _, row := range r.Rows {
		if row.Scenario == scenario {
			names = append(names, row.Backend)
		}
	}
	slices.Sort(names)
	return names
}

// measuredOnce reports whether a figure is of a scenario that has no rounds.
func measuredOnce(figure string) bool {
	name, _, _ := strings.Cut(figure, "/")
	return slices.ContainsFunc(Scenarios, func(s Scenario) bool { return s.Once && s.Name == name })
}

package conform

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Verdict is what came of a case.
type Verdict string

// The verdicts.
const (
	// Passed: the plugin did what the case expects.
	Passed Verdict = "passed"
	// Failed: it did not.
	Failed Verdict = "failed"
	// NotSupported: the case is not for this plugin, which does not speak the
	// version that the case needs, or lacks what the case is about.
	NotSupported Verdict = "not supported"
	// NotRun: the run ended before the case did.
	NotRun Verdict = "not run"
)

// Result is what came of one case.
type Result struct {
	Case
	Verdict Verdict `json:"verdict"`
	// Message says what was wrong, or why the case was not run. Empty for a
	// case that passed.
	Message string `json:"message,omitempty"`
	// Took is the time from the case's beginning to the end of its cleaning up.
	Took time.Duration `json:"took_ns"`
	// Calls are the invocations of a case that did not pass, in order.
	Calls []*Call `json:"calls,omitempty"`
}

// Run tries a plugin on the suite. It needs the right to make network and mount
// namespaces and to mount; see the package comment for what it changes. When ctx
// ends, the case that is running is cleaned up after, the others are not run, and
// the report so far is returned with ctx's error.
func Run(ctx context.Context, conf Config) (*Report, error) {
	conf, err := conf.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("conformance run: %w", err)
	}
	w, err := newWorld(ctx, conf)
	if err != nil {
		return nil, fmt.Errorf("conformance run: %w", err)
	}
	defer w.undo.Run()
	if err := w.hook(ctx, "setup", conf.Setup); err != nil {
		return nil, fmt.Errorf("conformance run: %w", err)
	}
	report := &Report{Plugin: conf.Plugin, Network: fmt.Sprint(w.network["name"]), Seed: conf.Seed, Begun: time.Now().UTC().Truncate(time.Second)}
	begin := time.Now()
	err = w.run(report)
	report.Took = time.Since(begin)
	// The hook has to run after an interrupt too.
	teardown, cancel := context.WithTimeout(context.WithoutCancel(ctx), conf.CallLimit)
	defer cancel()
	return report, errors.Join(err, w.hook(teardown, "teardown", conf.Teardown))
}

// run asks for the versions and runs the cases.
func (w *world) run(report *Report) error {
	defer w.dismiss()
	report.Supported, report.Versions = w.versions()
	for _, d := range definitions() {
		versions := d.versions(report.Versions)
		if len(versions) == 0 {
			w.notFor(report, &d)
		}
		for _, v := range versions {
			c := d.inVersion(v)
			if w.conf.Run != nil && !w.conf.Run.MatchString(c.ID()) {
				continue
			}
			r := Result{Case: c, Verdict: NotRun}
			if err := w.ctx.Err(); err != nil {
				r.Message = "the run was ended: " + context.Cause(w.ctx).Error()
			} else {
				w.try(&d, &r)
			}
			w.note(report, r)
		}
	}
	return w.ctx.Err()
}

// versions asks the plugin which versions it supports, and picks those to test.
// A plugin that does not answer is tested in its configuration's version.
func (w *world) versions() (supported, tested []string) {
	t := &trial{world: w, version: SpecVersions[len(SpecVersions)-1]}
	reply, err := t.probe(t.input(), nil)
	if err != nil {
		version, _ := w.network["cniVersion"].(string)
		tested = known([]string{version})
	} else {
		supported = reply.SupportedVersions
		tested = known(supported)
	}
	if len(tested) == 0 {
		tested = SpecVersions[:1]
	}
	if len(w.conf.Versions) > 0 {
		tested = slices.DeleteFunc(tested, func(v string) bool { return !slices.Contains(w.conf.Versions, v) })
	}
	return supported, tested
}

// notFor notes a case that needs a version that is not tested.
func (w *world) notFor(report *Report, d *definition) {
	versions := d.versions(SpecVersions)
	c := d.inVersion(versions[0])
	if w.conf.Run != nil && !w.conf.Run.MatchString(c.ID()) {
		return
	}
	why := fmt.Sprintf("the case is for versions from %s on", d.since)
	if d.since == "" {
		why = fmt.Sprintf("the case is for versions up to %s", d.until)
	}
	w.note(report, Result{Case: c, Verdict: NotSupported, Message: fmt.Sprintf("%s; tested are %v", why, report.Versions)})
}

// note adds a result to the report.
func (w *world) note(report *Report, r Result) {
	report.Results = append(report.Results, r)
	if w.conf.Progress != nil {
		w.conf.Progress(r)
	}
}

// try runs a case and cleans up after it.
func (w *world) try(d *definition, r *Result) {
	begin := time.Now()
	t := &trial{world: w, version: r.Version}
	err := d.run(t)
	t.undo.Run()
	if err != nil {
		w.dismiss() // who knows what the case did to it
	}
	r.Took = time.Since(begin)
	if err == nil {
		r.Verdict = Passed
		return
	}
	r.Verdict, r.Message, r.Calls = Failed, err.Error(), t.calls
	_, skip := errors.AsType[*unsupportedError](err)
	switch {
	case skip:
		r.Verdict, r.Calls = NotSupported, nil
	case w.ctx.Err() != nil && errors.Is(err, w.ctx.Err()):
		r.Verdict, r.Calls = NotRun, nil
	}
}

// dice is the source of random times.
type dice struct{ *rand.Rand }

// waitPart waits for a random part of a time.
func (d dice) waitPart(whole time.Duration) {
	<-time.After(time.Duration(d.Int64N(int64(max(whole, time.Millisecond)))))
}

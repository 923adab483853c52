package conform

import (
	"errors"
	"fmt"
	"strings"
)

const (
	sectionParameters = "§2 Parameters"
	sectionError      = "§5 Error"
)

// badEnv is an environment that cannot be right.
type badEnv struct {
	name     string
	verbs    []string
	variable string
	value    string // "" unsets the variable
}

// badEnvs lists the faults, each for the verbs that need the variable.
func badEnvs() []badEnv {
	all := []string{"ADD", "DEL", "CHECK"}
	return []badEnv{
		{"no-containerid", all, "CNI_CONTAINERID", ""},
		{"no-ifname", all, "CNI_IFNAME", ""},
		{"no-netns", []string{"ADD", "CHECK"}, "CNI_NETNS", ""},
		{"containerid-hyphen-first", all, "CNI_CONTAINERID", "-web"},
		{"containerid-slash", all, "CNI_CONTAINERID", "../web"},
		{"containerid-space", all, "CNI_CONTAINERID", "web 1"},
		{"containerid-not-ascii", all, "CNI_CONTAINERID", "wéb"},
		{"containerid-newline", all, "CNI_CONTAINERID", "web\n"},
		{"ifname-16-bytes", all, "CNI_IFNAME", "sixteen-letters0"},
		{"ifname-slash", all, "CNI_IFNAME", "eth/0"},
		{"ifname-colon", all, "CNI_IFNAME", "eth:0"},
		{"ifname-space", all, "CNI_IFNAME", "eth 0"},
		{"ifname-tab", all, "CNI_IFNAME", "eth\t0"},
		{"ifname-dot", all, "CNI_IFNAME", "."},
		{"ifname-dots", all, "CNI_IFNAME", ".."},
		{"command-unknown", []string{""}, "CNI_COMMAND", "FROBNICATE"},
		{"command-lower-case", []string{""}, "CNI_COMMAND", "add"},
		{"command-space", []string{""}, "CNI_COMMAND", "ADD "},
	}
}

// envCases make two cases of each fault: that it is refused, which is a must,
// and that the error says why.
func envCases() []definition {
	all := []definition{
		{name: "env/no-command", level: Must, section: sectionParameters, once: true,
			summary: "without CNI_COMMAND nothing is done and no result is printed", run: noCommand},
		{name: "env/no-path", level: May, section: "§2 ADD (CNI_PATH is optional; an IPAM plugin needs it)", once: true,
			summary: "ADD and DEL succeed without CNI_PATH", run: noPath},
		{name: "env/error-cniVersion", level: Should, section: sectionError,
			summary: "an error object has the key cniVersion, with the configuration's version", run: errorVersion},
		{name: "env/error-alone", level: Should, section: sectionError, once: true,
			summary: "an error object is all that is on standard output", run: errorAlone},
	}
	for _, e := range badEnvs() {
		for _, verb := range e.verbs {
			name, since := "env/"+e.name, ""
			if verb != "" {
				name = "env/" + verb + "/" + e.name
			}
			if verb == "CHECK" {
				since = checkSince
			}
			value := fmt.Sprintf("%s=%q", e.variable, e.value)
			if e.value == "" {
				value = "no " + e.variable
			}
			all = append(all,
				definition{name: name, level: Must, section: sectionParameters, since: since, once: true,
					summary: fmt.Sprintf("%s with %s fails and makes nothing", verbOf(verb), value), run: e.tried(verb, (*Call).refused)},
				definition{name: name + "/code", level: Should, section: sectionError, since: since, once: true,
					summary: fmt.Sprintf("the error of %s with %s is 4 and names the variable", verbOf(verb), value), run: e.tried(verb, func(c *Call) error {
						return errors.Join(c.code(4), c.names(e.variable))
					})})
		}
	}
	return all
}

func verbOf(verb string) string {
	if verb == "" {
		return "an invocation"
	}
	return verb
}

// tried makes a case of one fault in one verb's environment. DEL and CHECK are
// about an attachment, which they must not touch either.
func (e badEnv) tried(verb string, judge func(*Call) error) func(t *trial) error {
	return func(t *trial) error {
		a, err := t.aside(verb == "DEL" || verb == "CHECK")
		if err != nil {
			return err
		}
		r := t.request(verb, a).setenv(e.variable, e.value)
		if e.value == "" {
			r.unset(e.variable)
		}
		if err := r.expect(judge); err != nil {
			return err
		}
		if a.prev == nil {
			return a.c.untouched()
		}
		return t.alive(a)
	}
}

// aside returns the bystander, or else an attachment that is not yet added.
func (t *trial) aside(added bool) (*attachment, error) {
	if added {
		return t.bystander()
	}
	return t.fresh()
}

func noCommand(t *trial) error {
	a, err := t.fresh()
	if err != nil {
		return err
	}
	return t.clean(func() error {
		c, err := t.request("", a).unset("CNI_COMMAND").run()
		if err != nil {
			return err
		}
		// Exit status 0 is tolerated: many plugins tell their version on standard
		// error to people who start them by hand.
		if c.Status == 0 && strings.TrimSpace(c.Stdout) != "" {
			return fmt.Errorf("without CNI_COMMAND the plugin exits with 0 and prints %s", c.said())
		}
		return a.c.untouched()
	})
}

func noPath(t *trial) error {
	a, err := t.fresh()
	if err != nil {
		return err
	}
	if _, err := t.added(t.request("ADD", a).unset("CNI_PATH")); err != nil {
		return err
	}
	return t.request("DEL", a).unset("CNI_PATH").expect((*Call).succeeded)
}

// anyError provokes an error that has a configuration: of a missing namespace.
func (t *trial) anyError() (*Call, error) {
	a, err := t.fresh()
	if err != nil {
		return nil, err
	}
	c, err := t.request("ADD", a).setenv("CNI_NETNS", a.c.path+"-absent").run()
	if err != nil {
		return nil, err
	}
	return c, c.refused()
}

func errorVersion(t *trial) error {
	c, err := t.anyError()
	if err != nil {
		return err
	}
	e, err := c.errorObject()
	if err == nil && e.CNIVersion != t.version {
		err = fmt.Errorf("the error's cniVersion is %q, want %q: %s", e.CNIVersion, t.version, c.said())
	}
	return err
}

func errorAlone(t *trial) error {
	c, err := t.anyError()
	if err != nil {
		return err
	}
	_, err = c.errorObject()
	return err
}

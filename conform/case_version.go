package conform

import (
	"errors"
	"fmt"
)

// versionReply is what VERSION prints (section 5, "VERSION Success").
type versionReply struct {
	CNIVersion        string   `json:"cniVersion"`
	SupportedVersions []string `json:"supportedVersions"`
}

// probe asks the plugin for its versions.
func (t *trial) probe(input string, more map[string]string) (*versionReply, error) {
	r := t.request("VERSION", nil).text(input)
	r.env = map[string]string{"CNI_COMMAND": "VERSION"}
	for name, value := range more {
		r.setenv(name, value)
	}
	c, err := r.run()
	if err != nil {
		return nil, err
	}
	if err := c.succeeded(); err != nil {
		return nil, err
	}
	var reply versionReply
	if err := single(c.Stdout, &reply); err != nil {
		return nil, fmt.Errorf("what VERSION printed: %w", err)
	}
	var faults []error
	if _, ok := semver(reply.CNIVersion); !ok {
		faults = append(faults, fmt.Errorf("VERSION: cniVersion is %q, no version", reply.CNIVersion))
	}
	if len(reply.SupportedVersions) == 0 {
		faults = append(faults, errors.New("VERSION lists no supportedVersions"))
	}
	for _, v := range reply.SupportedVersions {
		if _, ok := semver(v); !ok {
			faults = append(faults, fmt.Errorf("VERSION lists %q, which is no version", v))
		}
	}
	return &reply, errors.Join(faults...)
}

func (t *trial) input() string { return fmt.Sprintf(`{"cniVersion":%q}`, t.version) }

func versionCases() []definition {
	const section = "§2 VERSION, §5 VERSION Success"
	return []definition{
		{name: "VERSION/answers", level: Must, section: section, once: true,
			summary: "VERSION succeeds and prints cniVersion and supportedVersions, given CNI_COMMAND alone",
			run: func(t *trial) error {
				_, err := t.probe(t.input(), nil)
				return err
			}},
		{name: "VERSION/echoes", level: Must, section: "§5 VERSION Success (since 1.0.0)", since: "1.0.0",
			summary: "the cniVersion that VERSION prints is the one that it was given",
			run: func(t *trial) error {
				reply, err := t.probe(t.input(), nil)
				if err == nil && reply.CNIVersion != t.version {
					err = fmt.Errorf("VERSION was given cniVersion %s and answered %s", t.version, reply.CNIVersion)
				}
				return err
			}},
		{name: "VERSION/dummies", level: Must, section: "libcni sets all variables to \"dummy\"", once: true,
			summary: "VERSION does not judge the variables of other verbs",
			run: func(t *trial) error {
				_, err := t.probe(t.input(), map[string]string{
					"CNI_CONTAINERID": "dummy", "CNI_NETNS": "dummy", "CNI_IFNAME": "dummy", "CNI_ARGS": "dummy", "CNI_PATH": "dummy"})
				return err
			}},
		{name: "VERSION/no-input", level: Should, section: "old runtimes send nothing", once: true,
			summary: "VERSION succeeds with nothing on its standard input",
			run: func(t *trial) error {
				_, err := t.probe("", nil)
				return err
			}},
		{name: "VERSION/future-version", level: Should, section: section, once: true,
			summary: "VERSION is how a runtime of another version finds out, so it succeeds for any cniVersion",
			run: func(t *trial) error {
				_, err := t.probe(`{"cniVersion":"9.9.9"}`, nil)
				return err
			}},
		{name: "VERSION/keeps-hands-off", level: Should, section: section, once: true,
			summary: "VERSION changes nothing on the host",
			run: func(t *trial) error {
				return t.clean(func() error {
					_, err := t.probe(t.input(), nil)
					return err
				})
			}},
	}
}

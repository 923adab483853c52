package conform

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// DirVariable is what stands in configurations, and in the environment of
// hooks, for the suite's temporary directory: "${CNI_CONFORM_DIR}/x.sock".
const DirVariable = "CNI_CONFORM_DIR"

// Config says what to test. Plugin and Conf must be set.
type Config struct {
	// Plugin is the path of the executable.
	Plugin string
	// Conf is the configuration: of one plugin (with a key "type"), or a list
	// (with a key "plugins") of which the plugin whose type is the executable's
	// name is taken, or the first.
	Conf []byte
	// Other is a configuration of a second network, with addresses of its own.
	// Empty: Conf under another name, which not every plugin can do.
	Other []byte
	// Path lists the directories that plugins find IPAM plugins in (CNI_PATH).
	// Empty: the executable's own.
	Path []string
	// Run selects cases by [Case.ID]. nil: all.
	Run *regexp.Regexp
	// Versions selects from the versions that the plugin supports. Empty: all.
	Versions []string
	// Setup and Teardown are shell commands that are run in the host namespace
	// before the first case and after the last. Empty: nothing.
	Setup, Teardown string
	// Dir is an empty directory for what the run needs, which the caller removes.
	// Its path should be short: sockets may be in it. Empty: one is made in the
	// system's directory for temporary files, and removed.
	Dir string
	// Parallel is how many containers are added and deleted at once. Zero: 8;
	// at most 64.
	Parallel int
	// Kills is how often a plugin is killed at a random time, for each verb.
	// Zero: 8; negative: never; at most 1000.
	Kills int
	// Seed chooses the times of kills. Zero: one from the clock, which the
	// report tells.
	Seed uint64
	// CallLimit bounds one invocation of the plugin. Zero: 30 s.
	CallLimit time.Duration
	// Settle is how long what goes by itself after a DEL or GC, such as a
	// device whose owner closes it, may take. Zero: 5 s.
	Settle time.Duration
	// Progress is called after each case, from the goroutine that called Run.
	// nil: not.
	Progress func(Result)
	// Log takes what the hooks print. nil: discarded.
	Log io.Writer
}

// withDefaults fills in what is zero and judges the rest.
func (c Config) withDefaults() (Config, error) {
	var errs []error
	if c.Plugin == "" {
		errs = append(errs, errors.New("no plugin is named"))
	} else if abs, err := filepath.Abs(c.Plugin); err != nil {
		errs = append(errs, err)
	} else if st, err := os.Stat(abs); err != nil {
		errs = append(errs, fmt.Errorf("plugin: %w", err))
	} else if st.IsDir() || st.Mode()&0o111 == 0 {
		errs = append(errs, fmt.Errorf("plugin %s: not an executable file", abs))
	} else {
		c.Plugin = abs
	}
	if len(c.Path) == 0 {
		c.Path = []string{filepath.Dir(c.Plugin)}
	}
	zero(&c.Parallel, 8)
	zero(&c.Kills, 8)
	zero(&c.CallLimit, 30*time.Second)
	zero(&c.Settle, 5*time.Second)
	zero(&c.Seed, uint64(time.Now().UnixNano()))
	zero(&c.Log, io.Discard)
	for _, limit := range []struct {
		what           string
		have, low, top int64
	}{
		{"parallel", int64(c.Parallel), 1, 64},
		{"kills", int64(max(c.Kills, 0)), 0, 1000},
		{"call limit", int64(c.CallLimit), int64(time.Millisecond), int64(time.Hour)},
		{"settle", int64(c.Settle), 0, int64(time.Minute)},
	} {
		if limit.have < limit.low || limit.have > limit.top {
			errs = append(errs, fmt.Errorf("%s: %d is not within %d to %d", limit.what, limit.have, limit.low, limit.top))
		}
	}
	for _, v := range c.Versions {
		if len(known([]string{v})) == 0 {
			errs = append(errs, fmt.Errorf("version %q is none of %s", v, strings.Join(SpecVersions, ", ")))
		}
	}
	return c, errors.Join(errs...)
}

// zero sets a value that was left out.
func zero[T comparable](v *T, value T) {
	var none T
	if *v == none {
		*v = value
	}
}

// object is a JSON object of which only some keys are ours.
type object map[string]any

// with returns a copy with more keys; nil deletes one.
func (o object) with(more object) object {
	out := maps.Clone(o)
	for k, v := range more {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = v
		}
	}
	return out
}

// parseConf turns a configuration file into one plugin's configuration, with
// its network's name. dir replaces [DirVariable].
func parseConf(data []byte, plugin, dir string) (object, error) {
	text := strings.ReplaceAll(string(data), "${"+DirVariable+"}", dir)
	var conf object
	if err := json.Unmarshal([]byte(text), &conf); err != nil {
		return nil, fmt.Errorf("decode the configuration: %w", err)
	}
	name, _ := conf["name"].(string)
	if list, ok := conf["plugins"].([]any); ok {
		if conf = pick(list, filepath.Base(plugin)); conf == nil {
			return nil, errors.New(`configuration: the list "plugins" has no plugin`)
		}
	}
	if _, ok := conf["type"].(string); !ok {
		return nil, errors.New(`configuration: the key "type" is missing, or no string`)
	}
	if name == "" {
		name = "conform"
	}
	// The runtime would take it out (section 3, "Deriving request configuration").
	return conf.with(object{"name": name, "capabilities": nil}), nil
}

// pick returns the plugin of that type, or the first.
func pick(list []any, typ string) object {
	var first object
	for _, entry := range list {
		conf, ok := entry.(map[string]any)
		if !ok {
			continue
		}
		if conf["type"] == typ {
			return conf
		}
		if first == nil {
			first = conf
		}
	}
	return first
}

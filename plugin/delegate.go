package plugin

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// delegate runs IPAM plugins. They get the environment of this invocation and
// the whole configuration (SPEC.md section 4); their standard error is passed
// on. pkg/invoke's Delegate functions would read the process's environment,
// which an invocation does not.
type delegate struct {
	inv  *invocation
	path string // of the executable
	exec *invoke.RawExec
}

// delegateEnv hands pkg/invoke a finished environment.
type delegateEnv environ

// AsEnv returns the environment.
func (e delegateEnv) AsEnv() []string { return e }

// ipam returns the IPAM plugin of the configuration, or nil when addresses are
// leased by the daemon.
func (i *invocation) ipam() (*delegate, error) {
	name := i.conf.IPAM.Type
	if !i.conf.IPAM.delegated() {
		return nil, nil
	}
	if i.params.Path == "" {
		return nil, fail(types.ErrInvalidEnvironmentVariables,
			"invalid environment for %s: CNI_PATH is missing, and ipam.type %q is a plugin to be found in it", i.params.Command, name)
	}
	path, err := invoke.FindInPath(name, filepath.SplitList(i.params.Path))
	if err != nil {
		return nil, badValue("ipam.type", name, fmt.Sprintf(
			"no such plugin in CNI_PATH=%s; install it there, or use %q", i.params.Path, nativeIPAM))
	}
	return &delegate{inv: i, path: path, exec: &invoke.RawExec{Stderr: i.Stderr}}, nil
}

// add runs ADD and returns the addresses in the newest form.
func (d *delegate) add(ctx context.Context) (*types100.Result, error) {
	r, err := invoke.ExecPluginWithResult(ctx, d.path, d.inv.input, d.env(cmdAdd), &invoke.DefaultExec{RawExec: d.exec})
	if err != nil {
		return nil, d.failure(cmdAdd, err)
	}
	result, err := types100.NewResultFromResult(r)
	if err != nil {
		return nil, d.failure(cmdAdd, fail(types.ErrDecodingFailure, "decode its result: %v", err))
	}
	return result, nil
}

// run runs a verb that has no result. A nil delegate has nothing to run.
func (d *delegate) run(ctx context.Context, command string) error {
	if d == nil {
		return nil
	}
	err := invoke.ExecPluginWithoutResult(ctx, d.path, d.inv.input, d.env(command), &invoke.DefaultExec{RawExec: d.exec})
	if err != nil {
		return d.failure(command, err)
	}
	return nil
}

func (d *delegate) env(command string) delegateEnv {
	return delegateEnv(environ(d.inv.Env).with("CNI_COMMAND", command))
}

// failure names the plugin; asCNI keeps the code that it gave.
func (d *delegate) failure(command string, err error) error {
	return fmt.Errorf("%s of the IPAM plugin %s: %w", command, d.path, err)
}

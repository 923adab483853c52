package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/usernet/usernet/internal/sandbox"
)

func (a *app) doctorCommand() *cobra.Command {
	var binDirs []string
	cmd := &cobra.Command{
		Use:   "doctor [CONFLIST…]",
		Short: "Say what this machine or a CNI configuration lacks, and what mends it",
		Long: `Looks at what usernet needs of this machine, by trying it where that is harmless.
A failure keeps "usernet run" from working at all; a warning costs a feature.

With CNI configurations, or directories of them, it judges these instead: plugins
chained after usernet that fail or break the container in silence, keys that ADD
would refuse, capabilities, versions, overlapping subnets, executables, daemons,
/dev/net/tun, the order of files, and podman's reservation of ports. Each finding
says where it is, what happens, and the edit or command that mends it.

Exit status: 1 when something failed, else 0.`,
		Example: `  usernet doctor
  usernet doctor /etc/cni/net.d
  usernet doctor --bin-dir /opt/cni/bin --json web.conflist`,
		RunE: func(cmd *cobra.Command, paths []string) error {
			if len(paths) > 0 {
				return a.lintConflists(cmd.Context(), paths, binDirs)
			}
			checks := sandbox.Examine(cmd.Context())
			checks = append(checks, a.examineDaemon(cmd.Context()))
			failed := false
			for _, c := range checks {
				failed = failed || c.State == sandbox.Failed
			}
			if a.json {
				if err := a.printJSON(checks); err != nil {
					return err
				}
			} else {
				a.printChecks(checks)
			}
			if failed {
				return &statusError{status: statusFailure}
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&binDirs, "bin-dir", nil, "`DIR` where the runtime looks for plugins, once for each (default: containers.conf's, else where podman and containerd do)")
	return a.jsonFlag(cmd)
}

func (a *app) printChecks(checks []sandbox.Check) {
	p := a.painter(a.stdout)
	colours := map[sandbox.CheckState]string{sandbox.OK: green, sandbox.Warning: yellow, sandbox.Failed: red}
	width := 0
	for _, c := range checks {
		width = max(width, len(c.Name))
	}
	for _, c := range checks {
		state := fmt.Sprintf("%-7s", c.State)
		fmt.Fprintf(a.stdout, "%s  %-*s  %s\n", p.paint(colours[c.State], state), width, c.Name, c.Found)
		if c.Fix != "" {
			fmt.Fprintf(a.stdout, "%s  %s\n", strings.Repeat(" ", 7+2+width), p.paint(bold, "-> "+c.Fix))
		}
	}
}

// readSysctl reads a parameter by its path below /proc/sys; what cannot be read
// is empty.
func readSysctl(path string) string {
	b, err := os.ReadFile("/proc/sys/" + path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/usernet/usernet/internal/sandbox"
)

func (a *app) doctorCommand() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine lacks, and the command that mends it",
		Long: `Looks at what usernet needs of this machine, by trying it where that is harmless.
A failure keeps "usernet run" from working at all; a warning costs a feature.

Exit status: 1 when something failed, else 0.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
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
	})
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

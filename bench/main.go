package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "probe" {
		if err := probe(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "probe:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

const long = `Measures usernet beside the tools that people would use in its place: real
processes in namespaces of the run's own, all on this machine, in one run, in
interleaved rounds. Needs root. Writes DATE.json, DATE.md and DATE-*.png.

Figures depend on the machine and on who else uses it: compare only within one
result, or two results of one machine by "bench compare".`

func command() *cobra.Command {
	root := &cobra.Command{
		Use: "bench", Short: "Measure usernet beside its peers", Long: long,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(runCommand(), compareCommand(), mergeCommand(), plotCommand(), listCommand())
	return root
}

func runCommand() *cobra.Command {
	var b Bench
	var scenarios, through, bin, tools, out string
	cmd := &cobra.Command{
		Use: "run", Short: "Run scenarios and write a result",
		Example: "  bench run -o results/today\n  bench run --rounds 1 --scenario 'crr|rr' --backend 'usernet|pasta'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if b.scenarios, err = regexp.Compile(scenarios); err != nil {
				return fmt.Errorf("--scenario: %w", err)
			}
			if b.backends, err = regexp.Compile(through); err != nil {
				return fmt.Errorf("--backend: %w", err)
			}
			if bin, err = filepath.Abs(bin); err != nil {
				return err
			}
			if tools, err = filepath.Abs(tools); err != nil {
				return err
			}
			if b.self, err = os.Executable(); err != nil {
				return err
			}
			all := backends(bin, tools)
			if err := b.check(all); err != nil {
				return err
			}
			return b.run(cmd.Context(), all, out)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&b.rounds, "rounds", 3, "interleaved rounds; the median is reported")
	flags.DurationVar(&b.duration, "time", 2*time.Second, "of each load, after one second of warm-up")
	flags.StringVar(&scenarios, "scenario", ".", "only the scenarios that match this `EXPRESSION`")
	flags.StringVar(&through, "backend", ".", "only the backends that match this `EXPRESSION`")
	flags.StringVar(&bin, "bin", "../bin", "`DIR` with usernet and usernet-cni")
	flags.StringVar(&tools, "tools", "../.tools/bench", "`DIR` with gvproxy and gvforwarder")
	flags.StringVarP(&out, "output", "o", "", "write `PATH`.json, PATH.md and PATH-*.png")
	return cmd
}

func listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the scenarios and the backends that they suit", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return list(cmd.OutOrStdout()) },
	}
}

func compareCommand() *cobra.Command {
	return &cobra.Command{
		Use: "compare OLD.json NEW.json", Short: "Compare usernet's figures of two results of one machine",
		Long: `Prints each figure of usernet in both results, and how it changed beside the
spread of both. Refuses results that are incomplete, of different machines or of
loads of different length. Exit status 1 when a figure got worse by more than
both spreads together and a twentieth, or is gone.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return compareFiles(cmd.OutOrStdout(), args[0], args[1])
		},
	}
}

func mergeCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "merge -o PATH PIECE.json PIECE.json...", Short: "Make one result of a run's pieces",
		Long: `Makes one result of pieces of a run that was too long to be made at once: other
scenarios, or further rounds of the same ones. Backends are compared only as
they met, so a scenario has the same backends in all its pieces. Refuses pieces
that are incomplete, or of different machines, commits, versions or loads.`,
		Example: "  bench run --rounds 1 --scenario '^egress-tcp4' -o /tmp/1\n  bench run --rounds 1 --scenario '^egress-tcp4' -o /tmp/2\n" +
			"  bench run --scenario rr -o /tmp/3\n  bench merge -o results/today /tmp/1.json /tmp/2.json /tmp/3.json",
		Args: cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error { return mergeFiles(out, args) },
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "write `PATH`.json, PATH.md and PATH-*.png")
	_ = cmd.MarkFlagRequired("output") // it errs for flags that are not there
	return cmd
}

func plotCommand() *cobra.Command {
	return &cobra.Command{
		Use: "plot RESULT.json", Short: "Draw a result again, and its Markdown", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := readReport(args[0])
			if err != nil {
				return err
			}
			return r.write(trimJSON(args[0]))
		},
	}
}

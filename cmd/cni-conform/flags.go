package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/usernet/usernet/conform"
)

// The exit statuses.
const (
	conforms    = 0
	deviates    = 1 // a case of level MUST did not pass
	usageStatus = 2 // the command line is wrong, or the suite cannot run here
)

const usage = `Usage: cni-conform --plugin PATH --conf FILE [OPTION]...

Tries a CNI plugin on what the CNI specification demands.

FILE is the configuration of one plugin, or a list with that plugin in it; in it
and in the hooks' environment ${CNI_CONFORM_DIR} is a temporary directory.

  cni-conform --plugin /usr/lib/cni/ptp --conf ptp.json
  cni-conform --plugin ./usernet --conf usernet.json \
    --setup 'usernet daemon --socket $CNI_CONFORM_DIR/u.sock --state-dir $CNI_CONFORM_DIR/state &
             until [ -S $CNI_CONFORM_DIR/u.sock ]; do sleep 0.1; done'
  cni-conform --list --run '^DEL/'

Exit status: 0 all MUST cases passed, 1 some did not, 2 it could not be tried.

Options:
`

// options are the command line.
type options struct {
	conform.Config
	confFile, otherFile string
	report, out         string
	private             []string
	list, verbose       bool
}

// parse reads the command line. It prints the usage itself.
func parse(args []string, stderr io.Writer) (*options, error) {
	o := &options{}
	flags := flag.NewFlagSet("cni-conform", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
	}
	flags.StringVar(&o.Plugin, "plugin", "", "`PATH` of the plugin's executable")
	flags.StringVar(&o.confFile, "conf", "", "`FILE` with the network configuration")
	flags.StringVar(&o.otherFile, "other", "", "`FILE` with the configuration of a second network (default: the first under another name)")
	flags.StringVar(&o.report, "report", "text", "`FORMAT` of the report: text, json or junit")
	flags.StringVar(&o.out, "out", "", "`FILE` for the report (default: standard output)")
	flags.BoolVar(&o.list, "list", false, "list the cases, run none")
	flags.BoolVar(&o.verbose, "v", false, "tell each case as it ends, and show the invocations of those that fail")
	flags.StringVar(&o.Setup, "setup", "", "shell `COMMAND` to run in the host namespace before the first case")
	flags.StringVar(&o.Teardown, "teardown", "", "shell `COMMAND` to run there after the last case")
	flags.IntVar(&o.Parallel, "parallel", 0, "`NUMBER` of containers at once (default 8)")
	flags.IntVar(&o.Kills, "kills", 0, "`NUMBER` of times that a plugin is killed in each such case; negative: none (default 8)")
	flags.Uint64Var(&o.Seed, "seed", 0, "`SEED` of the times of kills (default: one from the clock)")
	flags.DurationVar(&o.CallLimit, "call-limit", 0, "`TIME` that one invocation may take (default 30s)")
	flags.Func("run", "run the cases whose NAME@VERSION matches the `REGEXP`", func(s string) (err error) {
		o.Run, err = regexp.Compile(s)
		return err
	})
	flags.Func("versions", "test only these of the plugin's `VERSIONS`, such as 0.4.0,1.0.0", func(s string) error {
		o.Versions = strings.Split(s, ",")
		return nil
	})
	flags.Func("cni-path", "`DIR[:DIR]` with the plugins that the plugin runs (CNI_PATH; default: the plugin's own)", func(s string) error {
		o.Path = filepath.SplitList(s)
		return nil
	})
	o.private = []string{"/var/lib/cni", "/run/cni"}
	flags.Func("private", "`DIR[:DIR]` that plugins find empty and write into without trace (default /var/lib/cni:/run/cni)", func(s string) error {
		o.private = filepath.SplitList(s)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	err := o.judge(flags.Args())
	if err != nil {
		fmt.Fprintf(stderr, "cni-conform: %v\nTry cni-conform --help.\n", err)
	}
	return o, err
}

// judge looks for what is wrong with the options together.
func (o *options) judge(rest []string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("%q: there are no arguments besides the options", rest[0])
	case !slices.Contains([]string{"text", "json", "junit"}, o.report):
		return fmt.Errorf("--report %q: write text, json or junit", o.report)
	case o.list:
		return nil
	case o.Plugin == "":
		return errors.New("--plugin is missing: the path of the plugin's executable")
	case o.confFile == "":
		return errors.New("--conf is missing: the file with a network configuration for the plugin")
	}
	for _, dir := range o.private {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
			return fmt.Errorf("--private %q: write absolute paths of directories", dir)
		}
	}
	return nil
}

// load reads the configurations.
func (o *options) load() (err error) {
	if o.Conf, err = os.ReadFile(o.confFile); err != nil {
		return err
	}
	if o.otherFile != "" {
		o.Other, err = os.ReadFile(o.otherFile)
	}
	return err
}

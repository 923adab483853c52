// Command crio does with a network what CRI-O does beyond adding and deleting,
// by CRI-O's own library:
//
//	crio status                  # polled; pods wait until it succeeds
//	crio setup < pod.json        # ADD, then CHECK
//	crio teardown < pod.json     # DEL
//	crio gc < pods.json          # at start: whatever is not of these pods
//
// Pods are ocicni's PodNetwork, in JSON; CONF_PATH and BIN_PATH are where
// configurations and plugins are, as with ocicnitool.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cri-o/ocicni/pkg/ocicni"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: crio status | setup | teardown | gc")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "crio:", err)
		os.Exit(1)
	}
}

func run(verb string) error {
	net, err := ocicni.InitCNINoInotify("", os.Getenv("CONF_PATH"), "", os.Getenv("BIN_PATH"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) // CRI-O's own for GC
	defer cancel()
	switch verb {
	case "status":
		return net.StatusWithContext(ctx)
	case "gc":
		var pods []*ocicni.PodNetwork
		if err := json.NewDecoder(os.Stdin).Decode(&pods); err != nil {
			return err
		}
		return net.GC(ctx, pods)
	}
	var pod ocicni.PodNetwork
	if err := json.NewDecoder(os.Stdin).Decode(&pod); err != nil {
		return err
	}
	switch verb {
	case "setup":
		if _, err := net.SetUpPodWithContext(ctx, pod); err != nil {
			return err
		}
		results, err := net.GetPodNetworkStatusWithContext(ctx, pod)
		if err != nil {
			return err
		}
		return write(os.Stdout, results)
	case "teardown":
		return net.TearDownPodWithContext(ctx, pod)
	}
	return errors.New("unknown verb " + verb)
}

// write prints the results alone, one a line.
func write(w io.Writer, results []ocicni.NetResult) error {
	for _, r := range results {
		if err := r.Result.PrintTo(w); err != nil {
			return err
		}
	}
	return nil
}

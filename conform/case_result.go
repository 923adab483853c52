package conform

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

const sectionResult = "§5 ADD Success"

// resultCases look at what a successful ADD prints, each at one side of it.
func resultCases() []definition {
	return []definition{
		{name: "result/only-json", level: Must, section: sectionResult,
			summary: "standard output is one JSON object and nothing else",
			run:     ofResult(func(*trial, *attachment, *addResult) error { return nil })},
		{name: "result/cniVersion", level: Must, section: sectionResult,
			summary: "the result is in the configuration's version",
			run: ofResult(func(t *trial, _ *attachment, r *addResult) error {
				return r.hasVersion(t.version)
			})},
		{name: "result/keys", level: Must, section: sectionResult,
			summary: "the result has the keys of its version: ip4 and ip6 below 0.3.0, interfaces and ips since, ips[].version until 1.0.0",
			run: ofResult(func(t *trial, _ *attachment, r *addResult) error {
				return r.hasShape(t.version)
			})},
		{name: "result/values", level: Must, section: sectionResult,
			summary: "addresses, gateways, routes, name servers and MAC addresses are in their notation",
			run: ofResult(func(_ *trial, _ *attachment, r *addResult) error {
				return r.parses()
			})},
		{name: "result/interface", level: Must, section: sectionResult, since: "0.3.0",
			summary: "the result lists CNI_IFNAME with CNI_NETNS as its sandbox",
			run: ofResult(func(_ *trial, a *attachment, r *addResult) error {
				_, err := r.inSandbox(a.ifName, a.c.path)
				return err
			})},
		{name: "result/indices", level: Must, section: sectionResult, since: "0.3.0",
			summary: "ips[].interface is an index into interfaces",
			run: ofResult(func(_ *trial, _ *attachment, r *addResult) error {
				return r.hasIndices()
			})},
		{name: "result/mac", level: Should, section: "§5 ADD Success; podman refuses an interface without", since: "0.3.0",
			summary: "the interface in the container has a MAC address, the kernel's if the kernel has one",
			run:     ofResult(hasMAC)},
		{name: "result/mtu", level: Should, section: sectionResult, since: "1.1.0",
			summary: "an MTU in the result is the interface's",
			run:     ofResult(hasMTU)},
		{name: "result/routes", level: Should, section: "§5 ADD Success (routes created by this attachment)",
			summary: "the result's routes are in the container",
			run:     ofResult(hasRoutes)},
		{name: "result/netns-as-given", level: Must, section: sectionResult, since: "0.3.0", once: true,
			summary: "the sandbox is CNI_NETNS as it was given, not another path to the same namespace",
			run:     sandboxAsGiven},
	}
}

// ofResult makes a case of what one ADD prints, which is deleted after it.
func ofResult(judge func(*trial, *attachment, *addResult) error) func(t *trial) error {
	return func(t *trial) error {
		a, err := t.fresh()
		if err != nil {
			return err
		}
		res, err := t.add(a)
		if err != nil {
			return err
		}
		return judge(t, a, res)
	}
}

func hasMAC(_ *trial, a *attachment, r *addResult) error {
	i, err := r.inSandbox(a.ifName, a.c.path)
	if err != nil {
		return err
	}
	link, _, err := a.link()
	if err != nil {
		return err
	}
	kernel := link.HardwareAddr.String()
	switch {
	case i.MAC == "":
		return fmt.Errorf("interface %s of the result has no mac", i.Name)
	case kernel != "" && !strings.EqualFold(i.MAC, kernel):
		return fmt.Errorf("interface %s has the mac %s, the result says %s", i.Name, kernel, i.MAC)
	}
	return nil
}

func hasMTU(_ *trial, a *attachment, r *addResult) error {
	i, err := r.inSandbox(a.ifName, a.c.path)
	if err != nil {
		return err
	}
	link, _, err := a.link()
	if err == nil && i.MTU != 0 && i.MTU != link.MTU {
		err = fmt.Errorf("interface %s has MTU %d, the result says %d", i.Name, link.MTU, i.MTU)
	}
	return err
}

func hasRoutes(_ *trial, a *attachment, r *addResult) error {
	have, err := look(a.c.ns)
	if err != nil {
		return err
	}
	var faults []error
	for _, route := range r.routes() {
		if !have.routeTo(route.Dst) {
			faults = append(faults, fmt.Errorf("the result's route to %s is not in the container", route.Dst))
		}
	}
	return errors.Join(faults...)
}

// routeTo reports whether there is a route to exactly that destination.
func (s snapshot) routeTo(dst string) bool {
	for line := range s {
		if strings.HasPrefix(line, "route "+dst+" ") {
			return true
		}
	}
	return false
}

// sandboxAsGiven reaches the container by a path through this process.
func sandboxAsGiven(t *trial) error {
	a, err := t.fresh()
	if err != nil {
		return err
	}
	a.c.path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), a.c.ns.File().Fd())
	res, err := t.add(a)
	if err != nil {
		return err
	}
	_, err = res.inSandbox(a.ifName, a.c.path)
	return err
}

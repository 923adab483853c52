package conform

const (
	sectionStatus = "§2 STATUS"
	sectionGC     = "§2 GC"
	latest        = "1.1.0" // the version that brought GC and STATUS
)

func statusCases() []definition {
	return []definition{
		{name: "STATUS/ready", level: Must, section: sectionStatus, since: latest,
			summary: "STATUS succeeds where ADD does",
			run: func(t *trial) error {
				if err := t.warm(); err != nil {
					return err
				}
				return t.request("STATUS", nil).expect((*Call).succeeded)
			}},
		{name: "STATUS/prints-nothing", level: Should, section: sectionStatus, since: latest,
			summary: "a STATUS that succeeds prints nothing",
			run: func(t *trial) error {
				return t.request("STATUS", nil).expect((*Call).silent)
			}},
		{name: "STATUS/without-CNI_PATH", level: May, section: "§2 STATUS (CNI_PATH is optional; an IPAM plugin needs it)", since: latest,
			summary: "STATUS succeeds without CNI_PATH",
			run: func(t *trial) error {
				return t.request("STATUS", nil).unset("CNI_PATH").expect((*Call).succeeded)
			}},
		{name: "STATUS/keeps-hands-off", level: Must, section: "§2 STATUS (purely informational)", since: latest,
			summary: "STATUS changes nothing: neither the host nor an attachment",
			run: func(t *trial) error {
				return t.clean(func() error {
					a, err := t.attached()
					if err != nil {
						return err
					}
					if err := t.request("STATUS", nil).expect((*Call).succeeded); err != nil {
						return err
					}
					if err := t.alive(a); err != nil {
						return err
					}
					return t.del(a)
				})
			}},
		{name: "STATUS/before-1.1.0", level: Must, section: "§2 STATUS (since 1.1.0)", until: "1.0.0",
			summary: "STATUS fails in a version that does not have it", run: tooEarly("STATUS")},
		{name: "STATUS/before-1.1.0/code", level: Should, section: "§5 Error", until: "1.0.0", once: true,
			summary: "the error is 1, incompatible version (or 4, as the version's own unknown CNI_COMMAND)", run: tooEarly("STATUS", 1, 4)},
	}
}

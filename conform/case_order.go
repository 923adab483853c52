package conform

import "errors"

// orderCases repeat calls, and make them in other orders.
func orderCases() []definition {
	return []definition{
		{name: "order/ADD-ADD", level: Must, section: "§2 ADD (an interface of the requested name exists)",
			summary: "a second ADD of the same attachment fails, and leaves the first alone",
			run: afterAdd(func(t *trial, a *attachment) error {
				prev := a.prev
				if err := t.request("ADD", a).expect((*Call).refused); err != nil {
					return err
				}
				a.prev = prev
				return t.alive(a)
			})},
		{name: "order/DEL-DEL", level: Must, section: sectionDel,
			summary: "DEL succeeds again and again",
			run: afterAdd(func(t *trial, a *attachment) error {
				return errors.Join(t.del(a), t.del(a), t.del(a))
			})},
		{name: "order/DEL-first", level: Must, section: "§2 DEL; containerd and nerdctl do it on every start",
			summary: "DEL succeeds before any ADD",
			run: func(t *trial) error {
				a, err := t.fresh()
				if err != nil {
					return err
				}
				return t.del(a)
			}},
		{name: "order/ADD-DEL-ADD", level: Must, section: "§2 ADD; podman reloads a network like this",
			summary: "an attachment can be added again after DEL, in the same namespace",
			run: afterAdd(func(t *trial, a *attachment) error {
				for range 2 {
					if err := t.del(a); err != nil {
						return err
					}
					res, err := t.add(a)
					if err != nil {
						return err
					}
					if err := a.has(res); err != nil {
						return err
					}
				}
				return t.del(a)
			})},
		{name: "order/ADD-DEL-elsewhere-ADD", level: Must, section: sectionAdd, once: true,
			summary: "a container that was deleted can be added again in another namespace",
			run: afterAdd(func(t *trial, a *attachment) error {
				if err := t.del(a); err != nil {
					return err
				}
				c, err := t.container()
				if err != nil {
					return err
				}
				c.id = a.c.id
				again := t.in(c, a.ifName)
				res, err := t.add(again)
				if err != nil {
					return err
				}
				return again.has(res)
			})},
		{name: "order/ADD-ADD-other-DEL", level: Must, section: "§2 DEL",
			summary: "DEL of one container leaves another one's attachment alone", run: orderOthers},
		{name: "order/two-interfaces-DEL", level: Must, section: "§2 DEL", once: true,
			summary: "DEL of one interface of a container leaves its other one alone",
			run: func(t *trial) error {
				first, second, err := t.pairInOne()
				if err != nil {
					return err
				}
				if err := t.del(first); err != nil {
					return err
				}
				if err := errors.Join(t.settled(first.gone), t.alive(second)); err != nil {
					return err
				}
				return t.del(second)
			}},
		{name: "order/late-DEL", level: Must, section: "§2 DEL (multiple DELs)", once: true,
			summary: "a repeated DEL of a container that has gone does nothing to one that came after it", run: orderLate},
		{name: "order/failed-ADD-DEL-ADD", level: Must, section: "§3 Lifecycle & Ordering", once: true,
			summary: "after an ADD that failed, DEL succeeds, and so does ADD once the reason is gone",
			run: func(t *trial) error {
				a, err := t.fresh()
				if err != nil {
					return err
				}
				missing := t.request("ADD", a).setenv("CNI_NETNS", a.c.path+"-absent")
				if err := missing.expect((*Call).refused); err != nil {
					return err
				}
				if err := t.del(a); err != nil {
					return err
				}
				res, err := t.add(a)
				if err != nil {
					return err
				}
				return a.has(res)
			}},
	}
}

// orderOthers deletes in the order of the ADDs, and the other way round.
func orderOthers(t *trial) error {
	var all [3]*attachment
	for n := range all {
		var err error
		if all[n], err = t.attached(); err != nil {
			return err
		}
	}
	if err := t.del(all[0]); err != nil {
		return err
	}
	if err := errors.Join(t.alive(all[1]), t.alive(all[2])); err != nil {
		return err
	}
	if err := t.del(all[2]); err != nil {
		return err
	}
	if err := t.alive(all[1]); err != nil {
		return err
	}
	return t.del(all[1])
}

// orderLate deletes the first container again when another one may have its
// address already.
func orderLate(t *trial) error {
	first, err := t.attached()
	if err != nil {
		return err
	}
	if err := t.del(first); err != nil {
		return err
	}
	second, err := t.attached()
	if err != nil {
		return err
	}
	if err := t.del(first); err != nil {
		return err
	}
	return t.alive(second)
}

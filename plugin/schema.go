package plugin

import (
	"encoding/json"
	"maps"
	"slices"
)

// DefaultPublishMode is what "publish.mode" is when a configuration says nothing.
const DefaultPublishMode = string(publishAuto)

// Keys returns the keys that a configuration of type "usernet" may have at its
// top level, sorted. Every other key, except those that start with "cni.dev/",
// makes ADD fail with code 2.
func Keys() []string {
	return slices.Sorted(maps.Keys(fields))
}

// Judge returns what ADD would say of a network configuration before it does
// anything: nil, or an error whose text names every key that is at fault, its
// value and the remedy. conf is what the plugin gets on its standard input, so
// it has the list's name and cniVersion, and may have a runtimeConfig; its type
// says under which of the executable's names. Nothing is opened and no daemon is
// asked.
func Judge(conf []byte) error {
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(conf, &head); err != nil {
		head.Type = nameNative // which says what is wrong
	}
	c, err := programOf(head.Type).schema.parse(conf, strict)
	if err != nil {
		return err
	}
	_, err = negotiate(cmdAdd, c.CNIVersion)
	return err
}

package plugin

import "testing"

// TestParseConfigHostLocalKeys: a configuration moves over by changing the type.
func TestParseConfigHostLocalKeys(t *testing.T) {
	c, err := nativeSchema.parse([]byte(`{"name":"n","ipam":{"type":"usernet","dataDir":"/x","resolvConf":"/y","sticky":true,"subnet":"10.1.0.0/24"}}`), strict)
	if err != nil || c.IPAM.ResolvConf != "/y" || !c.IPAM.Sticky || len(c.IPAM.Sets) != 1 {
		t.Errorf("got %+v, %v", c, err)
	}
}

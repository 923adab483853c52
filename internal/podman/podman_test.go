package podman

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestReadReservation(t *testing.T) {
	const on, off = "[engine]\nenable_port_reservation = true\n", "[engine]\n# x\nenable_port_reservation=false\n[network]\n"
	for name, test := range map[string]struct {
		files map[string]string
		env   map[string]string
		want  Reservation
	}{
		"nothing":           {nil, nil, Reservation{true, ""}},
		"another section":   {map[string]string{"etc/containers/containers.conf": "[network]\nenable_port_reservation = false\n"}, nil, Reservation{true, ""}},
		"distribution":      {map[string]string{"usr/share/containers/containers.conf": off}, nil, Reservation{false, "/usr/share/containers/containers.conf"}},
		"administrator":     {map[string]string{"usr/share/containers/containers.conf": off, "etc/containers/containers.conf": on}, nil, Reservation{true, "/etc/containers/containers.conf"}},
		"drop-in":           {map[string]string{"etc/containers/containers.conf": on, "etc/containers/containers.conf.d/9.conf": off}, nil, Reservation{false, "/etc/containers/containers.conf.d/9.conf"}},
		"drop-ins in order": {map[string]string{"etc/containers/containers.conf.d/1.conf": off, "etc/containers/containers.conf.d/2.conf": on}, nil, Reservation{true, "/etc/containers/containers.conf.d/2.conf"}},
		"only one":          {map[string]string{"etc/containers/containers.conf": on, "my.conf": off}, map[string]string{"CONTAINERS_CONF": "/my.conf"}, Reservation{false, "/my.conf"}},
		"only one, absent":  {map[string]string{"etc/containers/containers.conf": off}, map[string]string{"CONTAINERS_CONF": "/dev/none"}, Reservation{true, ""}},
		"override":          {map[string]string{"etc/containers/containers.conf": on, "my.conf": off}, map[string]string{"CONTAINERS_CONF_OVERRIDE": "/my.conf"}, Reservation{false, "/my.conf"}},
		"silent file":       {map[string]string{"usr/share/containers/containers.conf": off, "etc/containers/containers.conf": "[engine]\n"}, nil, Reservation{false, "/usr/share/containers/containers.conf"}},
	} {
		root := fstest.MapFS{}
		for file, text := range test.files {
			root[file] = &fstest.MapFile{Data: []byte(text)}
		}
		got, err := ReadReservation(root, func(key string) string { return test.env[key] })
		if got != test.want || err != nil {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, test.want)
		}
	}
}

func TestReadReservationOfNonsense(t *testing.T) {
	root := fstest.MapFS{"etc/containers/containers.conf": &fstest.MapFile{Data: []byte("[engine\n")}}
	_, err := ReadReservation(root, func(string) string { return "" })
	if err == nil || !strings.Contains(err.Error(), "/etc/containers/containers.conf") {
		t.Errorf("got %v", err)
	}
}

func TestReadPluginDirs(t *testing.T) {
	none := func(string) string { return "" }
	root := fstest.MapFS{}
	if dirs, err := ReadPluginDirs(root, none); dirs != nil || err != nil {
		t.Errorf("by default %q, %v", dirs, err)
	}
	root["usr/share/containers/containers.conf"] = &fstest.MapFile{Data: []byte("[network]\ncni_plugin_dirs = [\"/a\", \"/b\"]\n")}
	root["etc/containers/containers.conf"] = &fstest.MapFile{Data: []byte("[engine]\ncni_plugin_dirs = [\"/c\"]\n")}
	if dirs, err := ReadPluginDirs(root, none); strings.Join(dirs, ":") != "/a:/b" || err != nil {
		t.Errorf("got %q, %v", dirs, err)
	}
}

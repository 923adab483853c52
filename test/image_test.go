//go:build runtimes

package test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// image is what the containers of all runtimes run: a static busybox, which
// sleeps unless it is told to do something else.
const image = "localhost/busybox:latest"

// imageRoot is the image's root file system, as a tar.
func imageRoot(t *testing.T) []byte {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	root := newTar()
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "sys", "tmp"} {
		root.dir(dir)
	}
	root.file("bin/busybox", busybox)
	for _, applet := range []string{"cat", "httpd", "ip", "nc", "nslookup", "ping", "sh", "sleep", "timeout", "wget"} {
		root.link("bin/"+applet, "busybox")
	}
	// Debian's static wget dies where glibc's name services are missing.
	root.file("bin/get", []byte("#!/bin/sh\n# get HOST PORT [PATH]\nprintf 'GET %s HTTP/1.0\\r\\n\\r\\n' ${3:-/} | nc -w 5 $1 $2\n"))
	root.file("etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\n"))
	return root.end(t)
}

// ociArchive is an OCI image layout in a tar, with a static busybox as all of
// it (image-spec: image-layout, manifest, config).
func ociArchive(t *testing.T) []byte {
	t.Helper()
	layout := newTar()
	blob := func(mediaType string, text []byte) keys {
		sum := fmt.Sprintf("%x", sha256.Sum256(text))
		layout.file("blobs/sha256/"+sum, text)
		return keys{"mediaType": mediaType, "digest": "sha256:" + sum, "size": len(text)}
	}
	marshal := func(v any) []byte {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	layer := blob("application/vnd.oci.image.layer.v1.tar", imageRoot(t))
	config := blob("application/vnd.oci.image.config.v1+json", marshal(keys{
		"architecture": "amd64", "os": "linux",
		"config": keys{"Cmd": []string{"/bin/sleep", "1000000"}, "Env": []string{"PATH=/bin"}},
		"rootfs": keys{"type": "layers", "diff_ids": []any{layer["digest"]}},
	}))
	manifest := blob("application/vnd.oci.image.manifest.v1+json", marshal(keys{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config, "layers": []keys{layer},
	}))
	manifest["annotations"] = keys{"io.containerd.image.name": image}
	layout.file("index.json", marshal(keys{"schemaVersion": 2, "manifests": []keys{manifest}}))
	layout.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return layout.end(t)
}

// tarball writes a tar in memory.
type tarball struct {
	buf bytes.Buffer
	w   *tar.Writer
	err error // the first
}

func newTar() *tarball {
	t := &tarball{}
	t.w = tar.NewWriter(&t.buf)
	return t
}

func (t *tarball) entry(h tar.Header, text []byte) {
	h.Size = int64(len(text))
	if err := t.w.WriteHeader(&h); err != nil && t.err == nil {
		t.err = err
	}
	if _, err := t.w.Write(text); err != nil && t.err == nil {
		t.err = err
	}
}

func (t *tarball) dir(name string) {
	t.entry(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, nil)
}
func (t *tarball) file(name string, text []byte) {
	t.entry(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755}, text)
}
func (t *tarball) link(name, to string) {
	t.entry(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, nil)
}

// end returns the tar.
func (t *tarball) end(test *testing.T) []byte {
	test.Helper()
	if err := t.w.Close(); err != nil || t.err != nil {
		test.Fatal(t.err, err)
	}
	return t.buf.Bytes()
}

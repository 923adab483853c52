// Package libnetwork is a module of its own, whose one requirement is the
// library with podman's CNI code: containers/common's own tests of it are run on
// the drop-in names by package test. What they need is thus no requirement of
// usernet.
package libnetwork

import _ "github.com/containers/common/libnetwork/cni" // its tests are what is wanted

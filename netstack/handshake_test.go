package netstack

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/printer"
	gotoken "go/token"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What handshake.go and inbox.go link by name has, in the gVisor that is linked, the very
// declarations that it relies on. When this fails after an update of gVisor,
// compare performHandshake and Forwarder.HandlePacket of its accept.go and
// forwarder.go with passive.start, and queuePacket and processor.start of its
// dispatcher.go with inbox, before touching the strings.
func TestLinkedFunctions(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "gvisor.dev/gvisor").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	found := map[string]bool{}
	for _, file := range []string{"accept.go", "connect.go", "dispatcher.go", "endpoint.go", "endpoint_state.go", "protocol.go", "segment.go"} {
		for _, decl := range declarations(t, filepath.Join(strings.TrimSpace(string(out)), "pkg/tcpip/transport/tcp", file)) {
			found[decl] = true
		}
	}
	for _, want := range []string{
		"func protocolFromStack(s *stack.Stack) *protocol",
		"func newListenContext(stk *stack.Stack, protocol *protocol, listenEP *Endpoint, rcvWnd seqnum.Size, v6Only bool, netProto tcpip.NetworkProtocolNumber) *listenContext",
		"func newIncomingSegment(id stack.TransportEndpointID, clock tcpip.Clock, pkt *stack.PacketBuffer) (*segment, error)",
		"func (s *segment) DecRef()",
		"func (l *listenContext) startHandshake(s *segment, opts header.TCPSynOptions, queue *waiter.Queue, owner tcpip.PacketOwner) (h *handshake, _ tcpip.Error)",
		"handshake begins with ep *Endpoint",
		"func (e *Endpoint) enqueueSegment(s *segment) bool",
		"func handleConnecting(ep *Endpoint)",
		"func handleConnected(ep *Endpoint)",
		"func (e *Endpoint) requeueOnRestore()",
	} {
		if !found[want] {
			t.Errorf("gVisor has no more: %s", want)
		}
	}
}

// declarations are the functions of a file, without their bodies, and the first
// fields of its structs.
func declarations(t *testing.T, path string) (all []string) {
	t.Helper()
	fset := gotoken.NewFileSet()
	file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	text := func(node any) string {
		var b bytes.Buffer
		if err := printer.Fprint(&b, fset, node); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			n.Doc, n.Body = nil, nil
			all = append(all, text(n))
			return false
		case *ast.TypeSpec:
			if s, ok := n.Type.(*ast.StructType); ok && len(s.Fields.List) > 0 && len(s.Fields.List[0].Names) > 0 {
				first := s.Fields.List[0]
				all = append(all, n.Name.Name+" begins with "+first.Names[0].Name+" "+text(first.Type))
			}
		}
		return true
	})
	return all
}

package daemon

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/usernet/usernet/internal/control"
	"github.com/usernet/usernet/netstack"
)

// captured is one packet on its way into the file.
type captured struct {
	netstack.CapturedPacket
	iface int
}

// Capture implements server.Handler: one pcapng interface per link, named by
// the link's id, with the links that there are at the start.
func (d *Daemon) Capture(ctx context.Context, q control.CaptureQuery, w io.Writer) error {
	links, err := d.captureLinks(q)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	packets := make(chan captured)
	var file *pcapgo.NgWriter
	for i, l := range links {
		c, err := l.net.sw.Capture(l.sl.Name())
		if err != nil {
			return control.Errorf(control.CodeNotFound, "capture %s: %v", l.key(), err)
		}
		defer c.Stop()
		if file, err = addInterface(file, w, l, q.SnapLen); err != nil {
			return fmt.Errorf("capture %s: %w", l.key(), err)
		}
		readers.Go(func() { forwardCapture(ctx, c, i, packets) })
	}
	if err := file.Flush(); err != nil { // the client sees that it has begun
		return err
	}
	ended := make(chan struct{})
	go func() { readers.Wait(); close(ended) }()
	return writeCapture(ctx, file, packets, ended, q.SnapLen)
}

func (d *Daemon) captureLinks(q control.CaptureQuery) ([]*link, error) {
	if q.Link != "" {
		l, err := d.oneLink(q.Link)
		return []*link{l}, err
	}
	networks, err := d.selectNetworks(q.Network)
	if err != nil {
		return nil, err
	}
	var links []*link
	for _, l := range d.linkList() {
		for _, n := range networks {
			if l.net == n && l.sl != nil {
				links = append(links, l)
			}
		}
	}
	if len(links) == 0 {
		return nil, control.Errorf(control.CodeNotFound, "there is no link to capture")
	}
	return links, nil
}

// addInterface describes a link in the file, and begins the file with the
// first.
func addInterface(file *pcapgo.NgWriter, w io.Writer, l *link, snapLen int) (*pcapgo.NgWriter, error) {
	intf := pcapgo.NgInterface{
		Name: l.key().String(), Description: fmt.Sprint(l.rec.Addrs), OS: "linux",
		LinkType: layers.LinkTypeRaw, SnapLength: uint32(snapLen), TimestampResolution: 9,
	}
	if file == nil {
		return pcapgo.NewNgWriterInterface(w, intf, pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{
			Application: "usernet", OS: "linux",
			Comment: "packets as the container's kernel made or takes them: superframes are whole, transport checksums may be left to the kernel",
		}})
	}
	_, err := file.AddInterface(intf)
	return file, err
}

// forwardCapture moves one link's packets to the writer until the capture or
// ctx ends. Capture waits for it.
func forwardCapture(ctx context.Context, c *netstack.Capture, iface int, to chan<- captured) {
	for {
		select {
		case p := <-c.Packets():
			select {
			case to <- captured{p, iface}:
			case <-ctx.Done():
				return
			}
		case <-c.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// writeCapture writes packets until ctx or all captures end. What is buffered
// goes out as soon as no further packet waits, so that a quiet link's packets
// are seen at once and a busy one's cost few writes.
func writeCapture(ctx context.Context, file *pcapgo.NgWriter, packets <-chan captured, ended <-chan struct{}, snapLen int) error {
	for {
		select {
		case p := <-packets:
			if err := writeBurst(file, p, packets, snapLen); err != nil {
				return fmt.Errorf("write capture: %w", err)
			}
		case <-ended:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

func writeBurst(file *pcapgo.NgWriter, p captured, packets <-chan captured, snapLen int) error {
	for {
		if err := writePacket(file, p, snapLen); err != nil {
			return err
		}
		select {
		case p = <-packets:
		default:
			return file.Flush()
		}
	}
}

func writePacket(file *pcapgo.NgWriter, p captured, snapLen int) error {
	info := gopacket.CaptureInfo{Timestamp: p.Time, Length: len(p.Data), CaptureLength: len(p.Data), InterfaceIndex: p.iface}
	if snapLen > 0 && snapLen < info.CaptureLength {
		info.CaptureLength = snapLen
	}
	// pcapng's directions are the capturing interface's: the container's own.
	flags := &pcapgo.NgEpbFlags{Direction: pcapgo.NgEpbFlagDirectionInbound}
	if p.FromContainer {
		flags.Direction = pcapgo.NgEpbFlagDirectionOutbound
	}
	return file.WritePacketWithOptions(info, p.Data[:info.CaptureLength], pcapgo.NgPacketOptions{Flags: flags})
}

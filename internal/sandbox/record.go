package sandbox

import (
	"fmt"
	"io"
	"sync"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/usernet/usernet/netstack"
)

// Recording is a capture that is being written as pcapng, the format of
// wireshark. Packets are those of the TUN: without Ethernet headers, of up to
// 64 KiB before the kernel cuts them, with transport checksums that are not
// filled in yet.
type Recording struct {
	capture *netstack.Capture
	writer  *pcapgo.NgWriter
	done    sync.WaitGroup
	err     error // of the first write; read after done
}

// Record starts to write the packets of a link to w, which stays the caller's.
// The caller stops the recording.
func Record(sw *netstack.Switch, link string, w io.Writer) (*Recording, error) {
	writer, err := pcapgo.NewNgWriterInterface(w, pcapgo.NgInterface{
		Name:                link,
		LinkType:            layers.LinkTypeRaw,
		TimestampResolution: 9, // nanoseconds: 10^-9 s
	}, pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Application: "usernet"}})
	if err != nil {
		return nil, fmt.Errorf("write the head of the capture: %w", err)
	}
	// A reader at the other end of a pipe learns of the interface at once.
	if err := writer.Flush(); err != nil {
		return nil, fmt.Errorf("write the head of the capture: %w", err)
	}
	capture, err := sw.Capture(link)
	if err != nil {
		return nil, err
	}
	r := &Recording{capture: capture, writer: writer}
	r.done.Add(1)
	go r.run()
	return r, nil
}

// Stop ends the recording, once all that was captured has been written. It
// returns the first error of writing; packets after it are lost. missed is how
// many packets came faster than they could be written.
func (r *Recording) Stop() (missed uint64, err error) {
	r.capture.Stop()
	r.done.Wait()
	return r.capture.Missed(), r.err
}

// run writes packets until the capture ends, and then what is still queued.
// Record starts it; Stop, or the link's end, ends it.
func (r *Recording) run() {
	defer r.done.Done()
	for {
		select {
		case p := <-r.capture.Packets():
			r.write(p)
		case <-r.capture.Done():
			r.drain()
			return
		}
	}
}

func (r *Recording) drain() {
	for {
		select {
		case p := <-r.capture.Packets():
			r.write(p)
		default:
			r.flush()
			return
		}
	}
}

func (r *Recording) write(p netstack.CapturedPacket) {
	if r.err != nil {
		return
	}
	direction := pcapgo.NgEpbFlagDirectionOutbound // as the container sees it
	if !p.FromContainer {
		direction = pcapgo.NgEpbFlagDirectionInbound
	}
	info := gopacket.CaptureInfo{Timestamp: p.Time, CaptureLength: len(p.Data), Length: len(p.Data)}
	options := pcapgo.NgPacketOptions{Flags: &pcapgo.NgEpbFlags{Direction: direction}}
	if err := r.writer.WritePacketWithOptions(info, p.Data, options); err != nil {
		r.err = fmt.Errorf("write a captured packet: %w", err)
		return
	}
	if len(r.capture.Packets()) == 0 { // whoever reads along sees it now
		r.flush()
	}
}

func (r *Recording) flush() {
	if err := r.writer.Flush(); err != nil && r.err == nil {
		r.err = fmt.Errorf("write a captured packet: %w", err)
	}
}

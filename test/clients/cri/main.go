// Command cri calls a method of a runtime's CRI API, as kubelet does:
//
//	cri SOCKET METHOD < request.json
//
// Requests and answers are the messages of k8s.io/cri-api, runtime.v1, in
// protobuf's JSON.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: cri SOCKET METHOD < request.json")
		os.Exit(2)
	}
	if err := call(os.Args[1], os.Args[2], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cri:", err)
		os.Exit(1)
	}
}

// call sends one request and writes the answer.
func call(socket, name string, in io.Reader, out io.Writer) error {
	method, err := find(name)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	request, answer := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
	if len(text) > 0 {
		if err := protojson.Unmarshal(text, request); err != nil {
			return fmt.Errorf("decode the request of %s: %w", name, err)
		}
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	path := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	if err := conn.Invoke(ctx, path, request, answer); err != nil {
		return err
	}
	text, err = protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(answer) // zeros of enumerations say something
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return err
}

// find looks a method up in both services.
func find(name string) (protoreflect.MethodDescriptor, error) {
	services := (*runtime.VersionRequest)(nil).ProtoReflect().Descriptor().ParentFile().Services()
	for i := range services.Len() {
		if m := services.Get(i).Methods().ByName(protoreflect.Name(name)); m != nil {
			return m, nil
		}
	}
	return nil, errors.New("the CRI API has no method " + name)
}

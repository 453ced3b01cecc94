package cli

import (
	"encoding/json"
	"io"

	"sigs.k8s.io/yaml"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Format is how a command answers. It is a pflag.Value.
type Format string

// The formats. Table is for people; the others are for programs and carry the same data in bytes.
const (
	TableFormat Format = "table"
	JSONFormat  Format = "json"
	YAMLFormat  Format = "yaml"
)

// Formats are all of them, for help and completion.
var Formats = []string{string(TableFormat), string(JSONFormat), string(YAMLFormat)}

func (f *Format) String() string { return string(*f) }

// Type is the placeholder in help.
func (f *Format) Type() string { return "format" }

// Set reads a format.
func (f *Format) Set(s string) error {
	switch Format(s) {
	case TableFormat, JSONFormat, YAMLFormat:
		*f = Format(s)
		return nil
	}
	return fault.New(fault.Invalid, "Use one of table, json, yaml.", "unknown output format %q", s)
}

// Write answers with data in the format, or through table for people.
func (f Format) Write(w io.Writer, data any, table func(io.Writer) error) error {
	switch f {
	case JSONFormat:
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(data)
	case YAMLFormat:
		out, err := yaml.Marshal(data)
		if err != nil {
			return err
		}
		_, err = w.Write(out)
		return err
	}
	return table(w)
}

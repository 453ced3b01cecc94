// Package chart tests the Helm chart: what it renders, what its schema refuses, and that deploy/ and the generated files are
// current. The chart itself is Chart.yaml, values.yaml, templates and crds in this directory; it holds no Go code.
//
// Outside the floors; it imports k8s.io/api and the API types in its tests only.
package chart

// The page's code does not say which kind of element it asks the document for, so any property of one is allowed.
interface EventTarget {
  [property: string]: any;
}
